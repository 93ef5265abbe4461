// Between tensors and their places in one flat f32 buffer. Block 256, grid-stride.

// flat = or += scale * x
extern "C" __global__ void add_into(float* flat, const T* x, float scale, int add, long long count) {
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < count; i += gridDim.x * 256ll) {
        float v = scale * widen(x[i]);
        flat[i] = add ? flat[i] + v : v;
    }
}

// x = flat, rounded
extern "C" __global__ void copy_from(const float* flat, T* x, long long count) {
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < count; i += gridDim.x * 256ll) x[i] = narrow(flat[i]);
}
