// What surrounds a convolution of pictures (B, C, H, W): patches as the rows of a matrix, what follows the sums, and sums back.
//
//   kernel       block  grid                         a thread
//   patches      256    any, loops                   one element of the matrix (C K L, OH OW) of each of `batch` samples
//   finish       256    any, loops                   one element
//   masked_sums  256    (C, B)                       a stride of a channel of a sample
//   pooled       256    any, loops                   one pixel of the smaller picture
//   depthwise    256    (ceil(OH OW / 256), C, B)    one pixel
//   moments      256    (groups, B)                  a stride of a group of a sample
//   affine       256    (ceil(HW / (256 VEC)), C, B) one pack

struct Spot {
    int height, width, zoom;

    // As in conv.cu.
    __device__ __forceinline__ int place(int u, int v) const {
        if (u < 0 || v < 0) return -1;
        int z = zoom > 0 ? zoom : -zoom, y = u / z, x = v / z;
        if (y >= height || x >= width || (zoom < 0 && (y * z != u || x * z != v))) return -1;
        return y * width + x;
    }
};

extern "C" __global__ void patches(
    const T* x, T* out, int channels, int height, int width, int zoom, int before_u, int before_v, int stride, int kernel_h, int kernel_w, int out_h,
    int out_w, long long count) {
    const Spot spot = {height, width, zoom};
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < count; i += gridDim.x * 256ll) {
        int v = i % out_w;
        long long rest = i / out_w;
        int u = rest % out_h;
        rest /= out_h;
        int l = rest % kernel_w;
        rest /= kernel_w;
        int k = rest % kernel_h;
        rest /= kernel_h;  // sample and channel
        int at = spot.place(u * stride + k - before_u, v * stride + l - before_v);
        out[i] = at < 0 ? (T)0 : x[rest * ((long long)height * width) + at];
    }
}

// act(y + bias + add), in place too; pointers but y may be null.
extern "C" __global__ void finish(const T* y, const T* bias, const T* add, T* out, int channels, int area, int relu, float most, long long count) {
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < count; i += gridDim.x * 256ll) {
        float value = widen(y[i]);
        if (bias) value += widen(bias[i / area % channels]);
        if (add) value += widen(add[i]);
        if (relu && value < 0.f) value = 0.f;
        if (value > most) value = most;
        out[i] = narrow(value);
    }
}

// g where y is inside the activation, and the sums of a channel of a sample to partial (B, C); y, out and partial may be null.
extern "C" __global__ void masked_sums(const T* g, const T* y, T* out, float* partial, int area, int relu, float most) {
    __shared__ float shared[8];
    const long long from = ((long long)blockIdx.y * gridDim.x + blockIdx.x) * area;
    float sum = 0.f;
    for (int i = threadIdx.x * VEC; i < area; i += 256 * VEC) {
        float a[VEC], b[VEC];
        load(g + from + i, a);
        if (y) {
            load(y + from + i, b);
#pragma unroll
            for (int k = 0; k < VEC; k++)
                if ((relu && !(b[k] > 0.f)) || !(b[k] < most)) a[k] = 0.f;
            store(out + from + i, a);
        }
#pragma unroll
        for (int k = 0; k < VEC; k++) sum += a[k];
    }
    if (!partial) return;
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < 8; w++) sum += shared[w];
        partial[blockIdx.y * gridDim.x + blockIdx.x] = sum;
    }
}

// Sums of n by n pixels.
extern "C" __global__ void pooled(const T* large, T* small, int width, int n, long long count) {
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < count; i += gridDim.x * 256ll) {
        long long row = i / width;
        const T* p = large + row * n * ((long long)width * n) + i % width * n;
        float sum = 0.f;
        for (int u = 0; u < n; u++)
            for (int v = 0; v < n; v++) sum += widen(p[(long long)u * width * n + v]);
        small[i] = narrow(sum);
    }
}

extern "C" __global__ void depthwise(
    const T* x, const T* w, const T* bias, T* y, int height, int width, int before, int stride, int kernel_h, int kernel_w, int out_h, int out_w,
    int relu, float most) {
    int pixel = blockIdx.x * 256 + threadIdx.x;
    if (pixel >= out_h * out_w) return;
    const long long plane = (long long)blockIdx.z * gridDim.y + blockIdx.y;
    const T* from = x + plane * height * width;
    const T* factors = w + blockIdx.y * kernel_h * kernel_w;
    int top = pixel / out_w * stride - before, left = pixel % out_w * stride - before;
    float sum = bias ? widen(bias[blockIdx.y]) : 0.f;
    for (int k = 0; k < kernel_h; k++) {
        int u = top + k;
        if (u < 0 || u >= height) continue;
        for (int l = 0; l < kernel_w; l++) {
            int v = left + l;
            if (v >= 0 && v < width) sum += widen(from[u * width + v]) * widen(factors[k * kernel_w + l]);
        }
    }
    if (relu && sum < 0.f) sum = 0.f;
    if (sum > most) sum = most;
    y[plane * out_h * out_w + pixel] = narrow(sum);
}

// Mean and variance of `count` neighbours, which are a group of channels of a sample. About the first one, so that a large mean costs no digits.
extern "C" __global__ void moments(const T* x, float* mean, float* variance, int count) {
    __shared__ float shared[2][8];
    const T* from = x + ((long long)blockIdx.y * gridDim.x + blockIdx.x) * count;
    const float origin = widen(from[0]);
    float sum = 0.f, squares = 0.f;
    for (int i = threadIdx.x * VEC; i < count; i += 256 * VEC) {
        float a[VEC];
        load(from + i, a);
#pragma unroll
        for (int k = 0; k < VEC; k++) {
            float d = a[k] - origin;
            sum += d;
            squares += d * d;
        }
    }
    sum = warp_sum(sum);
    squares = warp_sum(squares);
    if (threadIdx.x % 32 == 0) {
        shared[0][threadIdx.x / 32] = sum;
        shared[1][threadIdx.x / 32] = squares;
    }
    __syncthreads();
    if (threadIdx.x > 0) return;
    double total = 0., total_squares = 0.;
    for (int w = 0; w < 8; w++) {
        total += shared[0][w];
        total_squares += shared[1][w];
    }
    double off = total / count;
    mean[blockIdx.y * gridDim.x + blockIdx.x] = (float)(origin + off);
    variance[blockIdx.y * gridDim.x + blockIdx.x] = (float)fmax(total_squares / count - off * off, 0.);
}

// x factor + summand, one of each for a channel of a sample, then SiLU if asked for.
extern "C" __global__ void affine(const T* x, const float* factor, const float* summand, T* y, int area, int silu) {
    int i = (blockIdx.x * 256 + threadIdx.x) * VEC;
    if (i >= area) return;
    const int plane = blockIdx.z * gridDim.y + blockIdx.y;
    const long long at = (long long)plane * area + i;
    const float a = factor[plane], b = summand[plane];
    float v[VEC];
    load(x + at, v);
#pragma unroll
    for (int k = 0; k < VEC; k++) {
        v[k] = v[k] * a + b;
        if (silu) v[k] = v[k] / (1.f + expf(-v[k]));
    }
    store(y + at, v);
}
