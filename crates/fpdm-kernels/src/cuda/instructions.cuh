// What tensor cores and copies in the background need that is not C++, for sm_80 or newer.
#define INLINE __device__ __forceinline__

extern __shared__ __align__(16) unsigned char arena[];

// Address of a byte of shared memory as the instructions below want it.
INLINE unsigned shared_address(const void* pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes to shared memory in the background, or writes zeros.
INLINE void copy16(unsigned to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}

// Copies 4 bytes to shared memory in the background, or writes zeros.
INLINE void copy4(unsigned to, const void* from, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(valid ? 4 : 0) : "memory");
}

// Waits for this thread's copies.
INLINE void copies_done() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}

// Four 8x8 matrices of 2-byte elements: lane 8 i + r gives the address of row r of matrix i.
INLINE void load4(unsigned (&r)[4], unsigned from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

INLINE void load4_transposed(unsigned (&r)[4], unsigned from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

// Two 8x8 matrices: only the addresses of lanes 0 to 15 count.
INLINE void load2(unsigned (&r)[4], unsigned from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(from) : "memory");
}

INLINE void load2_transposed(unsigned (&r)[4], unsigned from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(from)
                 : "memory");
}

#if !defined(F32)
#if defined(BF16)
#define TYPE "bf16"
#else
#define TYPE "f16"
#endif

// c (16, 8) += a (16, 16) b (16, 8)
INLINE void multiply16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c (16, 8) += a (16, 8) b (8, 8)
INLINE void multiply8(float (&c)[4], const unsigned (&a)[4], unsigned b0) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32." TYPE "." TYPE ".f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0));
}

// Two numbers rounded to the type, the first one in the lower half.
INLINE unsigned packed(float lower, float upper) {
    unsigned both;
    asm("cvt.rn." TYPE "x2.f32 %0, %1, %2;" : "=r"(both) : "f"(upper), "f"(lower));
    return both;
}

INLINE float widened(unsigned short x) {
#if defined(BF16)
    return __uint_as_float(static_cast<unsigned>(x) << 16);
#else
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x));
    return wide;
#endif
}
#endif

// 2^x within 2 units in the last place; 0 for minus infinity.
INLINE float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

INLINE float infinite() {
    return __int_as_float(0x7f800000);
}

// The value of the lane whose number differs in the bits of `mask`.
INLINE float across(float x, int mask) {
    return __shfl_xor_sync(0xffffffffu, x, mask);
}

// The first lane's value, so that the compiler knows it to be the same in a whole warp.
INLINE int uniform(int x) {
    return __shfl_sync(0xffffffffu, x, 0);
}

