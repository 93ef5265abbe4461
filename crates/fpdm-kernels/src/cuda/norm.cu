// Layer norm without weights of its own, modulated by vectors of each group of `rows` rows: out = unit(x) (1 + scale) +
// shift. One warp a row, the row in registers: STEPS packs of VEC a lane. Four warps a block.

#define WARPS 4

struct Row {
    float x[STEPS][VEC];
};

__device__ __forceinline__ void load_row(Row& r, const T* p, int packs, int lane) {
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        int pack = s * 32 + lane;
        if (pack < packs) load(p + pack * VEC, r.x[s]);
        else
#pragma unroll
            for (int k = 0; k < VEC; k++) r.x[s][k] = 0.f;
    }
}

__device__ __forceinline__ void store_row(const Row& r, T* p, int packs, int lane) {
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        int pack = s * 32 + lane;
        if (pack < packs) store(p + pack * VEC, r.x[s]);
    }
}

// Mean and 1 / sqrt(variance + eps); two passes over registers, so that nothing cancels.
__device__ __forceinline__ void moments(const Row& r, int packs, int lane, float eps, float& mean, float& scale) {
    float sum = 0.f, squares = 0.f, width = (float)(packs * VEC);
#pragma unroll
    for (int s = 0; s < STEPS; s++)
#pragma unroll
        for (int k = 0; k < VEC; k++) sum += r.x[s][k];
    mean = warp_sum(sum) / width;
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        if (s * 32 + lane < packs)
#pragma unroll
            for (int k = 0; k < VEC; k++) {
                float d = r.x[s][k] - mean;
                squares = fmaf(d, d, squares);
            }
    }
    scale = rsqrtf(warp_sum(squares) / width + eps);
}

__device__ __forceinline__ void modulate(
    Row& r, const T* shift, const T* scale, int packs, int lane, float mean, float inverse) {
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        int pack = s * 32 + lane;
        if (pack < packs) {
            float a[VEC], b[VEC];
            load(scale + pack * VEC, a);
            load(shift + pack * VEC, b);
#pragma unroll
            for (int k = 0; k < VEC; k++) r.x[s][k] = fmaf((r.x[s][k] - mean) * inverse, 1.f + a[k], b[k]);
        }
    }
}

// grid ceil(count / 4), block (32, 4)
extern "C" __global__ void norm_forward(
    const T* x, const T* shift, const T* scale, T* out, int packs, int rows, int shift_stride, int scale_stride,
    float eps, int count) {
    int row = blockIdx.x * WARPS + threadIdx.y, lane = threadIdx.x;
    if (row >= count) return;
    long long at = (long long)row * packs * VEC;
    int group = row / rows;
    Row r;
    float mean, inverse;
    load_row(r, x + at, packs, lane);
    moments(r, packs, lane, eps, mean, inverse);
    modulate(r, shift + (long long)group * shift_stride, scale + (long long)group * scale_stride, packs, lane, mean, inverse);
    store_row(r, out + at, packs, lane);
}

// The end of one branch and the beginning of the next: sum = x + gate y, out = unit(sum) (1 + scale) + shift. The norm
// sees the sum as it is stored, so that joined and separate operations agree.
extern "C" __global__ void gate_norm_forward(
    const T* x, const T* gate, const T* y, const T* shift, const T* scale, T* sum, T* out, int packs, int rows,
    int gate_stride, int shift_stride, int scale_stride, float eps, int count) {
    int row = blockIdx.x * WARPS + threadIdx.y, lane = threadIdx.x;
    if (row >= count) return;
    long long at = (long long)row * packs * VEC;
    int group = row / rows;
    Row r;
    float mean, inverse;
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        int pack = s * 32 + lane;
        if (pack < packs) {
            float a[VEC], b[VEC], c[VEC];
            load(gate + (long long)group * gate_stride + pack * VEC, a);
            load(y + at + pack * VEC, b);
            load(x + at + pack * VEC, c);
#pragma unroll
            for (int k = 0; k < VEC; k++) r.x[s][k] = widen(narrow(fmaf(a[k], b[k], c[k])));
        } else
#pragma unroll
            for (int k = 0; k < VEC; k++) r.x[s][k] = 0.f;
    }
    store_row(r, sum + at, packs, lane);
    moments(r, packs, lane, eps, mean, inverse);
    modulate(r, shift + (long long)group * shift_stride, scale + (long long)group * scale_stride, packs, lane, mean, inverse);
    store_row(r, out + at, packs, lane);
}

// Block (32, 4), grid (chunks, groups): a block walks `chunk` rows of one group, writes dx and, to partial (groups,
// chunks, 2 width) in f32, its share of the gradients of shift and of scale. `plus`, if there, is added to dx: the
// gradient that reaches x another way.
extern "C" __global__ void norm_backward(
    const T* x, const T* scale, const T* g, const T* plus, T* dx, float* partial, int packs, int rows, int chunk,
    int scale_stride, float eps) {
    extern __shared__ float shared[];
    int lane = threadIdx.x, warp = threadIdx.y, group = blockIdx.y, width = packs * VEC;
    int first = blockIdx.x * chunk, last = min(first + chunk, rows);
    float dshift[STEPS][VEC] = {}, dscale[STEPS][VEC] = {};
    const T* factor = scale + (long long)group * scale_stride;
    for (int row = first + warp; row < last; row += WARPS) {
        long long at = ((long long)group * rows + row) * width;
        Row r, d;
        float mean, inverse, a = 0.f, b = 0.f;
        load_row(r, x + at, packs, lane);
        load_row(d, g + at, packs, lane);
        moments(r, packs, lane, eps, mean, inverse);
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            int pack = s * 32 + lane;
            if (pack < packs) {
                float f[VEC];
                load(factor + pack * VEC, f);
#pragma unroll
                for (int k = 0; k < VEC; k++) {
                    float unit = (r.x[s][k] - mean) * inverse;
                    dshift[s][k] += d.x[s][k];
                    dscale[s][k] = fmaf(d.x[s][k], unit, dscale[s][k]);
                    d.x[s][k] *= 1.f + f[k];
                    a += d.x[s][k];
                    b = fmaf(d.x[s][k], unit, b);
                    r.x[s][k] = unit;
                }
            }
        }
        a = warp_sum(a) / (float)width;
        b = warp_sum(b) / (float)width;
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            int pack = s * 32 + lane;
            if (pack < packs) {
                float p[VEC];
                if (plus) load(plus + at + pack * VEC, p);
#pragma unroll
                for (int k = 0; k < VEC; k++) {
                    float v = (d.x[s][k] - a - r.x[s][k] * b) * inverse;
                    r.x[s][k] = plus ? v + p[k] : v;
                }
            }
        }
        store_row(r, dx + at, packs, lane);
    }
    // Warps add up one after the other: a fixed order.
    for (int w = 0; w < WARPS; w++) {
        if (warp == w)
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                int pack = s * 32 + lane;
                if (pack < packs)
#pragma unroll
                    for (int k = 0; k < VEC; k++) {
                        int c = pack * VEC + k;
                        shared[c] = w ? shared[c] + dshift[s][k] : dshift[s][k];
                        shared[width + c] = w ? shared[width + c] + dscale[s][k] : dscale[s][k];
                    }
            }
        __syncthreads();
    }
    float* out = partial + ((long long)group * gridDim.x + blockIdx.x) * 2 * width;
    for (int c = warp * 32 + lane; c < 2 * width; c += 32 * WARPS) out[c] = shared[c];
}

// Softmax of rows, and its gradient from the result.
extern "C" __global__ void softmax_forward(const T* x, T* out, int packs, int count) {
    int row = blockIdx.x * WARPS + threadIdx.y, lane = threadIdx.x;
    if (row >= count) return;
    long long at = (long long)row * packs * VEC;
    Row r;
    load_row(r, x + at, packs, lane);
    float most = -__int_as_float(0x7f800000), sum = 0.f;
#pragma unroll
    for (int s = 0; s < STEPS; s++)
        if (s * 32 + lane < packs)
#pragma unroll
            for (int k = 0; k < VEC; k++) most = fmaxf(most, r.x[s][k]);
    most = warp_max(most);
#pragma unroll
    for (int s = 0; s < STEPS; s++)
        if (s * 32 + lane < packs)
#pragma unroll
            for (int k = 0; k < VEC; k++) sum += r.x[s][k] = expf(r.x[s][k] - most);
    sum = 1.f / warp_sum(sum);
#pragma unroll
    for (int s = 0; s < STEPS; s++)
#pragma unroll
        for (int k = 0; k < VEC; k++) r.x[s][k] *= sum;
    store_row(r, out + at, packs, lane);
}

extern "C" __global__ void softmax_backward(const T* y, const T* g, T* dx, int packs, int count) {
    int row = blockIdx.x * WARPS + threadIdx.y, lane = threadIdx.x;
    if (row >= count) return;
    long long at = (long long)row * packs * VEC;
    Row r, d;
    load_row(r, y + at, packs, lane);
    load_row(d, g + at, packs, lane);
    float sum = 0.f;
#pragma unroll
    for (int s = 0; s < STEPS; s++)
#pragma unroll
        for (int k = 0; k < VEC; k++) sum = fmaf(r.x[s][k], d.x[s][k], sum);
    sum = warp_sum(sum);
#pragma unroll
    for (int s = 0; s < STEPS; s++)
#pragma unroll
        for (int k = 0; k < VEC; k++) r.x[s][k] *= d.x[s][k] - sum;
    store_row(r, dx + at, packs, lane);
}
