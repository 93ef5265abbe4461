// Vectors that act on all rows of a group: gates and biases. Rows of `packs` packs, `rows` of them to a group; a thread
// moves one pack, 256 threads a block. `stride` is the distance of one group's vector from the next, 0 for one for all.

extern "C" __global__ void gate_residual(
    const T* x, const T* gate, const T* y, T* out, int packs, int rows, int stride, long long count) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= count) return;
    long long row = i / packs;
    int column = (int)(i - row * packs) * VEC;
    float a[VEC], b[VEC], c[VEC];
    load(gate + (row / rows) * stride + column, a);
    load(y + i * VEC, b);
    if (x) load(x + i * VEC, c);
#pragma unroll
    for (int k = 0; k < VEC; k++) b[k] = x ? fmaf(a[k], b[k], c[k]) : a[k] * b[k];
    store(out + i * VEC, b);
}

extern "C" __global__ void add_rows(
    const T* x, const T* bias, T* out, int packs, int rows, int stride, long long count) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= count) return;
    long long row = i / packs;
    int column = (int)(i - row * packs) * VEC;
    float a[VEC], b[VEC];
    load(bias + (row / rows) * stride + column, a);
    load(x + i * VEC, b);
#pragma unroll
    for (int k = 0; k < VEC; k++) b[k] += a[k];
    store(out + i * VEC, b);
}
