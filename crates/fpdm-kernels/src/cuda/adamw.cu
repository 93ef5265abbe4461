// One step of AdamW on flat f32 buffers, in place, with averages of the weights and the rounded working copy in the same
// pass. `scale` (on the device) multiplies the gradient: the clipping factor, found without asking the host. A step whose
// scale is no number changes nothing. Up to four averages; unused pointers are null. Block 256, grid-stride.

extern "C" __global__ void adamw(
    float* p, float* m, float* v, const float* g, const float* scale, T* work, float* ema0, float* ema1, float* ema2,
    float* ema3, float decay0, float decay1, float decay2, float decay3, float beta1, float beta2, float rate,
    float root, float eps, float keep, long long count) {
    float factor = *scale;
    if (!(factor >= 0.f)) return;
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < count; i += gridDim.x * 256ll) {
        float d = g[i] * factor;
        float a = beta1 * m[i] + (1.f - beta1) * d, b = beta2 * v[i] + (1.f - beta2) * d * d;
        float q = keep * p[i] - rate * (a / (sqrtf(b) * root + eps));
        m[i] = a;
        v[i] = b;
        p[i] = q;
        if (work) work[i] = narrow(q);
        if (ema0) ema0[i] = decay0 * ema0[i] + (1.f - decay0) * q;
        if (ema1) ema1[i] = decay1 * ema1[i] + (1.f - decay1) * q;
        if (ema2) ema2[i] = decay2 * ema2[i] + (1.f - decay2) * q;
        if (ema3) ema3[i] = decay3 * ema3[i] + (1.f - decay3) * q;
    }
}

// Squares of a flat gradient: block 256, one partial a block, then one block of 256 for the sum and the clipping factor
// min(1, most / (norm + 1e-6)), or no number where the norm is none. `norm` gets the norm.
extern "C" __global__ void squares(const float* g, float* partial, long long count) {
    __shared__ float shared[8];
    float sum = 0.f;
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < count; i += gridDim.x * 256ll) sum = fmaf(g[i], g[i], sum);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < 8; w++) sum += shared[w];
        partial[blockIdx.x] = sum;
    }
}

extern "C" __global__ void clip(const float* partial, int count, float most, float* norm, float* scale) {
    __shared__ float shared[8];
    float sum = 0.f;
    for (int i = threadIdx.x; i < count; i += 256) sum += partial[i];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < 8; w++) sum += shared[w];
        float length = sqrtf(sum);
        *norm = length;
        *scale = length < __int_as_float(0x7f800000) ? fminf(1.f, most / (length + 1e-6f)) : __int_as_float(0x7fffffff);
    }
}
