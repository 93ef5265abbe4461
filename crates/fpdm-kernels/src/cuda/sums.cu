// Sums over the rows of each group, in a fixed order.
//
// group_sums: block (32, 8), grid (ceil(packs / 32), chunks, groups). A block sums `chunk` rows of 32 packs of columns
// and writes f32 to partial (groups, chunks, width). With `y` the terms are g*y, and with `dy` it also writes gate*g,
// the gradient of the gated branch, while g is at hand.
// residual_squares: block 256, grid (chunks, B). Sums of (f - z)^2 and of f^2 of a sample's `packs` packs to partial (chunks, 2 B).
// gelu_pull: as group_sums with one group. From argument and gradient of GELU to GELU and the argument's gradient, which may lie where
// those lie, and the sums of the latter.
// lookup_sums: block (32, 8), grid (ceil(packs / 32), V): the sums of the rows of g whose index is v, to partial (V, width).
// finish_sums: block (32, n <= 32), grid (ceil(width / 32), groups); adds the chunks up, and rounds once to `out` or adds to `sum`.

// Adds the eight warps' sums of 32 packs up, to the columns of a row of `width`.
__device__ __forceinline__ void block_sums(float (&shared)[8][32 * VEC + 1], const float (&sum)[VEC], float* to, int width) {
#pragma unroll
    for (int k = 0; k < VEC; k++) shared[threadIdx.y][threadIdx.x * VEC + k] = sum[k];
    __syncthreads();
    for (int c = threadIdx.y * 32 + threadIdx.x; c < 32 * VEC; c += 256) {
        int column = blockIdx.x * 32 * VEC + c;
        if (column >= width) continue;
        float total = 0.f;
        for (int w = 0; w < 8; w++) total += shared[w][c];
        to[column] = total;
    }
}

extern "C" __global__ void group_sums(
    const T* g, const T* y, const T* gate, T* dy, float* partial, int packs, int rows, int chunk, int stride) {
    __shared__ float shared[8][32 * VEC + 1];
    int pack = blockIdx.x * 32 + threadIdx.x, group = blockIdx.z;
    int first = blockIdx.y * chunk, last = min(first + chunk, rows);
    float sum[VEC] = {}, scale[VEC];
    if (pack < packs) {
        if (dy) load(gate + (long long)group * stride + pack * VEC, scale);
        for (int row = first + threadIdx.y; row < last; row += 8) {
            long long at = (((long long)group * rows + row) * packs + pack) * VEC;
            float a[VEC], b[VEC];
            load(g + at, a);
            if (y) load(y + at, b);
#pragma unroll
            for (int k = 0; k < VEC; k++) sum[k] += y ? a[k] * b[k] : a[k];
            if (dy) {
#pragma unroll
                for (int k = 0; k < VEC; k++) a[k] *= scale[k];
                store(dy + at, a);
            }
        }
    }
    block_sums(shared, sum, partial + ((long long)group * gridDim.y + blockIdx.y) * packs * VEC, packs * VEC);
}

extern "C" __global__ void residual_squares(const T* z, const T* f, float* partial, int packs) {
    __shared__ float shared[2][8];
    const long long from = (long long)blockIdx.y * packs * VEC;
    float apart = 0.f, size = 0.f;
    for (int i = blockIdx.x * 256 + threadIdx.x; i < packs; i += gridDim.x * 256) {
        float a[VEC], b[VEC];
        load(z + from + (long long)i * VEC, a);
        load(f + from + (long long)i * VEC, b);
#pragma unroll
        for (int k = 0; k < VEC; k++) {
            apart += (b[k] - a[k]) * (b[k] - a[k]);
            size += b[k] * b[k];
        }
    }
    apart = warp_sum(apart);
    size = warp_sum(size);
    if (threadIdx.x % 32 == 0) {
        shared[0][threadIdx.x / 32] = apart;
        shared[1][threadIdx.x / 32] = size;
    }
    __syncthreads();
    if (threadIdx.x < 2) {
        float total = 0.f;
        for (int w = 0; w < 8; w++) total += shared[threadIdx.x][w];
        partial[((long long)blockIdx.x * 2 + threadIdx.x) * gridDim.y + blockIdx.y] = total;
    }
}

extern "C" __global__ void gelu_pull(const T* argument, const T* g, T* y, T* d, float* partial, int packs, int rows, int chunk) {
    __shared__ float shared[8][32 * VEC + 1];
    int pack = blockIdx.x * 32 + threadIdx.x;
    int first = blockIdx.y * chunk, last = min(first + chunk, rows);
    float sum[VEC] = {};
    if (pack < packs) {
        // Results may lie where arguments do, so that the compiler would not read ahead.
        for (int row = first + threadIdx.y; row < last; row += 16) {
            long long at[2] = {((long long)row * packs + pack) * VEC, ((long long)(row + 8) * packs + pack) * VEC};
            float a[2][VEC], b[2][VEC];
#pragma unroll
            for (int i = 0; i < 2; i++)
                if (row + 8 * i < last) {
                    load(argument + at[i], a[i]);
                    load(g + at[i], b[i]);
                }
#pragma unroll
            for (int i = 0; i < 2; i++)
                if (row + 8 * i < last) {
#pragma unroll
                    for (int k = 0; k < VEC; k++) {
                        float x = a[i][k], t = tanh_of(GELU_SCALE * (x + GELU_CUBIC * x * x * x));
                        float inner = GELU_SCALE * (1.f + 3.f * GELU_CUBIC * x * x);
                        b[i][k] *= 0.5f * (1.f + t) + 0.5f * x * (1.f - t * t) * inner;
                        a[i][k] = 0.5f * x * (1.f + t);
                        sum[k] += b[i][k];
                    }
                    store(y + at[i], a[i]);
                    store(d + at[i], b[i]);
                }
        }
    }
    block_sums(shared, sum, partial + (long long)blockIdx.y * packs * VEC, packs * VEC);
}

extern "C" __global__ void lookup_sums(const T* g, const u32* index, float* partial, int packs, int rows) {
    __shared__ float shared[8][32 * VEC + 1];
    int pack = blockIdx.x * 32 + threadIdx.x;
    float sum[VEC] = {};
    if (pack < packs)
        for (int row = threadIdx.y; row < rows; row += 8)
            if (index[row] == blockIdx.y) {
                float a[VEC];
                load(g + ((long long)row * packs + pack) * VEC, a);
#pragma unroll
                for (int k = 0; k < VEC; k++) sum[k] += a[k];
            }
    block_sums(shared, sum, partial + (long long)blockIdx.y * packs * VEC, packs * VEC);
}

extern "C" __global__ void finish_sums(const float* partial, T* out, float* sum, int width, int chunks) {
    __shared__ float shared[32][32];
    int column = blockIdx.x * 32 + threadIdx.x;
    const float* from = partial + (long long)blockIdx.y * chunks * width + column;
    float total = 0.f;
    if (column < width) {
#pragma unroll 8
        for (int c = threadIdx.y; c < chunks; c += blockDim.y) total += from[(long long)c * width];
    }
    shared[threadIdx.y][threadIdx.x] = total;
    __syncthreads();
    if (threadIdx.y > 0 || column >= width) return;
    for (int c = 1; c < blockDim.y; c++) total += shared[c][threadIdx.x];
    long long at = (long long)blockIdx.y * width + column;
    if (sum) sum[at] += total;
    else out[at] = narrow(total);
}
