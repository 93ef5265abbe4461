// Sums over the rows of each group, in a fixed order.
//
// group_sums: block (32, 8), grid (ceil(packs / 32), chunks, groups). A block sums `chunk` rows of 32 packs of columns
// and writes f32 to partial (groups, chunks, width). With `y` the terms are g*y, and with `dy` it also writes gate*g,
// the gradient of the gated branch, while g is at hand.
// residual_squares: block 256, grid (chunks, B). Sums of (f - z)^2 and of f^2 of a sample's `packs` packs to partial (chunks, 2 B).
// finish_sums: one thread a column of a group, block 256; adds the chunks up and rounds once.

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
#pragma unroll
    for (int k = 0; k < VEC; k++) shared[threadIdx.y][threadIdx.x * VEC + k] = sum[k];
    __syncthreads();
    int width = packs * VEC;
    for (int c = threadIdx.y * 32 + threadIdx.x; c < 32 * VEC; c += 256) {
        int column = blockIdx.x * 32 * VEC + c;
        if (column >= width) continue;
        float total = 0.f;
        for (int w = 0; w < 8; w++) total += shared[w][c];
        partial[((long long)group * gridDim.y + blockIdx.y) * width + column] = total;
    }
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

extern "C" __global__ void finish_sums(const float* partial, T* out, int width, int chunks, int groups) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= (long long)groups * width) return;
    long long group = i / width;
    int column = (int)(i - group * width);
    float total = 0.f;
    for (int c = 0; c < chunks; c++) total += partial[(group * chunks + c) * width + column];
    out[i] = narrow(total);
}
