// Cosines, then sines, of each time at each frequency: a thread an angle, 256 a block. The angle is in f32 whatever T is.

extern "C" __global__ void waves(const float* t, const float* frequencies, T* out, int half, long long count) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= count) return;
    const long long row = i / half;
    const int k = i % half;
    float sine, cosine;
    sincosf(t[row] * frequencies[k], &sine, &cosine);
    T* to = out + row * 2 * half + k;
    to[0] = narrow(cosine);
    to[half] = narrow(sine);
}
