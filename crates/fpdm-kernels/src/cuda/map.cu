// Functions of single numbers: `count` packs, a grid-stride loop, 256 threads a block.

__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

#define MAP(name, expression)                                                                    \
    extern "C" __global__ void name(const T* x, T* out, long long count) {                       \
        for (long long i = blockIdx.x * 256ll + threadIdx.x; i < count; i += gridDim.x * 256ll) { \
            float a[VEC], y[VEC];                                                                \
            load(x + i * VEC, a);                                                                \
            _Pragma("unroll") for (int k = 0; k < VEC; k++) {                                    \
                float v = a[k];                                                                  \
                y[k] = expression;                                                               \
            }                                                                                    \
            store(out + i * VEC, y);                                                             \
        }                                                                                        \
    }

// The slope at `x`, or at the result, times the gradient.
#define PULL(name, expression)                                                                   \
    extern "C" __global__ void name(const T* x, const T* g, T* out, long long count) {           \
        for (long long i = blockIdx.x * 256ll + threadIdx.x; i < count; i += gridDim.x * 256ll) { \
            float a[VEC], b[VEC], y[VEC];                                                        \
            load(x + i * VEC, a);                                                                \
            load(g + i * VEC, b);                                                                \
            _Pragma("unroll") for (int k = 0; k < VEC; k++) {                                    \
                float v = a[k], d = b[k];                                                        \
                y[k] = expression;                                                               \
            }                                                                                    \
            store(out + i * VEC, y);                                                             \
        }                                                                                        \
    }

MAP(gelu_forward, gelu(v))
MAP(silu_forward, v * sigmoid(v))
PULL(gelu_backward, d * gelu_slope(v))
PULL(silu_backward, d * sigmoid(v) * (1.f + v * (1.f - sigmoid(v))))
// The sum of both: `out` may be where `x` is.
PULL(add, v + d)
