// Shared by every kernel here. Compiled at run time without headers: BF16, F16 or F32 names the element type T, VEC how
// many elements one access moves (16 bytes where rows allow it, else 1).
#define FULL 0xffffffffu
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#if defined(BF16)
typedef u16 T;
__device__ __forceinline__ float widen(T x) { return __uint_as_float((u32)x << 16); }
__device__ __forceinline__ T narrow(float x) {
    u16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
#elif defined(F16)
typedef u16 T;
__device__ __forceinline__ float widen(T x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}
__device__ __forceinline__ T narrow(float x) {
    u16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
#else
typedef float T;
__device__ __forceinline__ float widen(T x) { return x; }
__device__ __forceinline__ T narrow(float x) { return x; }
#endif

#ifndef VEC
#define VEC 1
#endif

struct __align__(sizeof(T) * VEC) Pack {
    T v[VEC];
};

__device__ __forceinline__ void load(const T* p, float (&x)[VEC]) {
    Pack pack = *reinterpret_cast<const Pack*>(p);
#pragma unroll
    for (int i = 0; i < VEC; i++) x[i] = widen(pack.v[i]);
}

__device__ __forceinline__ void store(T* p, const float (&x)[VEC]) {
    Pack pack;
#pragma unroll
    for (int i = 0; i < VEC; i++) pack.v[i] = narrow(x[i]);
    *reinterpret_cast<Pack*>(p) = pack;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(FULL, x, d);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) x = fmaxf(x, __shfl_xor_sync(FULL, x, d));
    return x;
}

// 1 - 2 / (e^2x + 1): one exponential, exact at both ends, absolute error of a few ulp of 1. Narrow types do not see the error
// of the processor's own exponential and quotient, some 1e-6.
#if defined(BF16) || defined(F16)
__device__ __forceinline__ float tanh_of(float x) {
    float e, r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(2.8853900817779268f * x));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(e + 1.f));
    return fmaf(-2.f, r, 1.f);
}
#else
__device__ __forceinline__ float tanh_of(float x) { return 1.f - 2.f / (expf(2.f * x) + 1.f); }
#endif

#define GELU_SCALE 0.7978845608028654f
#define GELU_CUBIC 0.044715f

__device__ __forceinline__ float gelu(float x) {
    return 0.5f * x * (1.f + tanh_of(GELU_SCALE * (x + GELU_CUBIC * x * x * x)));
}

__device__ __forceinline__ float gelu_slope(float x) {
    float t = tanh_of(GELU_SCALE * (x + GELU_CUBIC * x * x * x));
    float inner = GELU_SCALE * (1.f + 3.f * GELU_CUBIC * x * x);
    return 0.5f * (1.f + t) + 0.5f * x * (1.f - t * t) * inner;
}
