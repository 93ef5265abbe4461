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

// Adds each of `v` up over a team of `warps` warps; `room` is for this sum alone. A warp's sums are read at once.
template <int N>
__device__ __forceinline__ void team_sums(float (&v)[N], float* room, int warps) {
    struct __align__(4 * N) Sums {
        float v[N];
    };
    Sums* mine = reinterpret_cast<Sums*>(room) + threadIdx.y * warps;
    Sums sums;
#pragma unroll
    for (int i = 0; i < N; i++) sums.v[i] = warp_sum(v[i]);
    if (threadIdx.x % 32 == 0) mine[threadIdx.x / 32] = sums;
    __syncthreads();
    sums = mine[0];
#pragma unroll 1
    for (int w = 1; w < warps; w++) {
        Sums more = mine[w];
#pragma unroll
        for (int i = 0; i < N; i++) sums.v[i] += more.v[i];
    }
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = sums.v[i];
}

// Block (team, teams), grid (chunks, groups): a block walks `chunk` rows of one group, two of them a team at a time, STEPS packs a
// thread; writes dx and, to partial (groups, chunks, 2 width) in f32, its share of the gradients of shift and of scale.
// `plus`, if there, is added to dx: the gradient that reaches x another way. Shared: the larger of 8 * warps of the block
// and 2 width floats.
extern "C" __global__ void __launch_bounds__(256) norm_backward(
    const T* __restrict__ x, const T* __restrict__ scale, const T* __restrict__ g, const T* __restrict__ plus, T* __restrict__ dx,
    float* partial, int packs, int rows, int chunk, int scale_stride, float eps) {
    extern __shared__ float shared[];
    const int warps = blockDim.x / 32, all = warps * blockDim.y, group = blockIdx.y, width = packs * VEC;
    const float share = 1.f / (float)width;
    const int first = blockIdx.x * chunk, last = min(first + chunk, rows);
    const T* other = plus ? plus : g;
    float dshift[STEPS][VEC] = {}, dscale[STEPS][VEC] = {}, factor[STEPS][VEC];
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        int pack = s * blockDim.x + threadIdx.x;
        if (pack < packs) load(scale + (long long)group * scale_stride + pack * VEC, factor[s]);
#pragma unroll
        for (int k = 0; k < VEC; k++) factor[s][k] = pack < packs ? 1.f + factor[s][k] : 0.f;
    }
    for (int from = first; from < last; from += 2 * blockDim.y) {
        const int row = from + 2 * threadIdx.y;
        float r[2][STEPS][VEC], d[2][STEPS][VEC], p[2][STEPS][VEC];
        // Without branches, so that all is on its way at once; what is not there is read elsewhere and not used.
        Pack of_x[2][STEPS], of_g[2][STEPS], of_plus[2][STEPS];
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                int pack = min((int)(s * blockDim.x + threadIdx.x), packs - 1);
                long long at = (((long long)group * rows + min(row + i, last - 1)) * packs + pack) * VEC;
                of_x[i][s] = *reinterpret_cast<const Pack*>(x + at);
                of_g[i][s] = *reinterpret_cast<const Pack*>(g + at);
                of_plus[i][s] = *reinterpret_cast<const Pack*>(other + at);
            }
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                bool there = s * blockDim.x + threadIdx.x < packs && row + i < last;
#pragma unroll
                for (int k = 0; k < VEC; k++) {
                    r[i][s][k] = there ? widen(of_x[i][s].v[k]) : 0.f;
                    d[i][s][k] = there ? widen(of_g[i][s].v[k]) : 0.f;
                    p[i][s][k] = plus ? widen(of_plus[i][s].v[k]) : 0.f;
                }
            }
        float sum[2] = {}, squares[2] = {}, both[4] = {};
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int s = 0; s < STEPS; s++)
#pragma unroll
                for (int k = 0; k < VEC; k++) sum[i] += r[i][s][k];
        team_sums(sum, shared, warps);
        // Two passes over registers, so that nothing cancels.
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int s = 0; s < STEPS; s++)
#pragma unroll
                for (int k = 0; k < VEC; k++) {
                    r[i][s][k] -= sum[i] * share;
                    if (s * blockDim.x + threadIdx.x < packs) squares[i] = fmaf(r[i][s][k], r[i][s][k], squares[i]);
                }
        team_sums(squares, shared + 2 * all, warps);
        float inverse[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            inverse[i] = row + i < last ? rsqrtf(squares[i] * share + eps) : 0.f;
#pragma unroll
            for (int s = 0; s < STEPS; s++)
#pragma unroll
                for (int k = 0; k < VEC; k++) {
                    float unit = r[i][s][k] * inverse[i], v = d[i][s][k];
                    dshift[s][k] += v;
                    dscale[s][k] = fmaf(v, unit, dscale[s][k]);
                    v *= factor[s][k];
                    both[2 * i] += v;
                    both[2 * i + 1] = fmaf(v, unit, both[2 * i + 1]);
                    r[i][s][k] = unit;
                    d[i][s][k] = v;
                }
        }
        team_sums(both, shared + 4 * all, warps);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float a = both[2 * i] * share, b = both[2 * i + 1] * share;
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                int pack = s * blockDim.x + threadIdx.x;
                if (pack < packs && row + i < last) {
#pragma unroll
                    for (int k = 0; k < VEC; k++) {
                        float v = (d[i][s][k] - a - r[i][s][k] * b) * inverse[i];
                        r[i][s][k] = v + p[i][s][k];
                    }
                    store(dx + (((long long)group * rows + row + i) * packs + pack) * VEC, r[i][s]);
                }
            }
        }
    }
    __syncthreads();
    // Teams add up one after the other: a fixed order.
    for (int team = 0; team < blockDim.y; team++) {
        if (threadIdx.y == team)
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                int pack = s * blockDim.x + threadIdx.x;
                if (pack < packs)
#pragma unroll
                    for (int k = 0; k < VEC; k++) {
                        int c = pack * VEC + k;
                        shared[c] = team ? shared[c] + dshift[s][k] : dshift[s][k];
                        shared[width + c] = team ? shared[width + c] + dscale[s][k] : dscale[s][k];
                    }
            }
        __syncthreads();
    }
    float* out = partial + ((long long)group * gridDim.x + blockIdx.x) * 2 * width;
    for (int c = threadIdx.y * blockDim.x + threadIdx.x; c < 2 * width; c += blockDim.x * blockDim.y) out[c] = shared[c];
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
