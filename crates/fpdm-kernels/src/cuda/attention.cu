// Multi-head self-attention over all tokens: forward, and backward without atomics.
//
// Compiled once for each head size and type, for sm_80 or newer, without headers:
//   -DHEAD=d   32 to 128 in steps of 8
//   -DBF16 | -DF16 | -DF32
//
// qkv (B, T, 3 D) holds queries, keys and values one after the other, each as (heads, HEAD); out and dout (B, T, D); dqkv as qkv;
// lse (B, heads, T) the natural logarithm of the sum of the exponentials of the scaled scores, which attention_forward leaves out where
// the pointer is null; delta (B, heads, T) the sums of out * dout over a head; D = heads * HEAD. All tensors are contiguous, their
// pointers aligned to 16 bytes (lse and delta to 4). Every element of the outputs is written. B and heads up to 65535, B * T * heads below 2^31.
//
// Launches. `warps` may be any number from 1 to the given one; every choice gives the same bits.
//
//   kernel                    warps (block = 32 * warps)              grid                                dynamic shared memory, bytes
//   BF16, F16 (`rows` = 16 * warps, ROW = 16 * ((HEAD / 8) | 1)):
//     attention_forward         1..8                                    (ceil(T / rows), heads, B)          (rows + 256) * ROW
//     attention_backward        1..6 if HEAD <= 80, else 1..4           (2 * ceil(T / rows), heads, B)      (2 * rows + 256) * ROW + 1024
//   F32:
//     attention_forward         4 (128 threads)                         (ceil(T / 32), heads, B)            (96 * (HEAD + 4) + 32 * 36) * 4
//     attention_backward        4 (128 threads)                         (2 * ceil(T / 32), heads, B)        (128 * (HEAD + 4) + 64 * 36 + 64) * 4
//   all:
//     attention_backward_delta  8 (256 threads)                         ceil(B * T * heads / (256 / (HEAD / 8)))   1024
//
// Sizes above 48 KiB need cudaFuncAttributeMaxDynamicSharedMemorySize; quotients in the table without ceil are rounded down. Good `warps` for a long T: the number that spreads
// ceil(T / 16) strips evenly over the fewest blocks (n = ceil(strips / most), warps = ceil(strips / n)); for few heads, fewer warps.
// Backward runs delta first, then attention_backward: the first half of the blocks of a head makes dk and dv, the second half dq.
// No atomics: the same inputs give the same bits.

#if !defined(HEAD) || HEAD < 32 || HEAD > 128 || HEAD % 8 != 0
#error "HEAD must be 32 to 128 in steps of 8"
#endif

#if defined(F32)
typedef float Element;
#elif defined(F16) || defined(BF16)
typedef unsigned short Element;
#else
#error "one of BF16, F16, F32 must be defined"
#endif

// Elements of a row that are moved at once.
constexpr int UNITS = HEAD / 8;

// 1 / sqrt(HEAD)
INLINE float score_scale() {
    return 1.f / sqrtf(static_cast<float>(HEAD));
}

// Where a block's sample and head begin in qkv and in the outputs.
struct Corner {
    int width;         // of out and dout
    long long packed;  // first element in qkv and dqkv: the queries; keys one width on, values two
    long long plain;   // first element in out and dout
    long long row;     // first element in lse and delta
};

INLINE Corner corner(int tokens, int heads) {
    const int width = heads * HEAD, head = blockIdx.y;
    const long long row = static_cast<long long>(blockIdx.z) * tokens, plain = row * width + head * HEAD;
    return {width, row * 3 * width + head * HEAD, plain, row * heads + static_cast<long long>(head) * tokens};
}

#if !defined(F32)

// ============================================================================================= tensor cores, 2-byte types
//
// A warp holds 16 rows: queries (forward, dq) or keys (dk and dv). The accumulator of a 16x8 product has, in a lane, rows
// lane / 4 and lane / 4 + 8 and columns 2 * (lane % 4) and the next one. Rounded and packed, two of them side by side are the left
// factor of the next product: the weights never pass through memory.
//
// Rows lie in shared memory as an odd number of 16-byte units, so that eight rows meet eight different groups of banks: loads
// and stores of 8x8 matrices are free of conflicts. One pattern of addresses serves all of them (`lane_place`): matrices 0 and 1 are
// the upper and lower 8 rows of the left 8 columns, 2 and 3 the same of the right 8 columns. An odd number of units (HEAD = 72) ends
// in a product of depth 8: nothing is padded.

constexpr float LOG2_E = 1.4426950408889634f;

constexpr int ROW = 16 * (UNITS | 1);   // bytes of a row in shared memory
constexpr int STEPS = HEAD / 16;        // products of depth 16
constexpr bool ODD = HEAD % 16 != 0;    // one of depth 8 after them
constexpr int COLUMNS = 64;             // rows of the other side (keys, or queries) in shared memory at a time
constexpr int STAGE = COLUMNS * ROW;    // bytes of one of them

#ifndef FORWARD_WARPS
#define FORWARD_WARPS 8
#endif
#ifndef FORWARD_BLOCKS
#define FORWARD_BLOCKS (HEAD <= 80 ? 2 : 1)
#endif
#ifndef BACKWARD_WARPS
#define BACKWARD_WARPS (HEAD <= 80 ? 6 : 4)
#endif
#ifndef BACKWARD_BLOCKS
#define BACKWARD_BLOCKS 2
#endif

// A strip of 16 rows as left factors.
struct Strip {
    unsigned a[STEPS + 1][4];

    INLINE void load(unsigned from) {
#pragma unroll
        for (int k = 0; k < STEPS; ++k) load4(a[k], from + 32 * k);
        if (ODD) load2(a[STEPS], from + 32 * STEPS);
    }
};

INLINE unsigned lane_place(int lane) {
    return (lane & 15) * ROW + (lane >> 4) * 16;
}

// Which of the 16-byte units of some rows a thread of `threads` moves: always the same one, of every `step`-th row. The threads
// left over have none.
struct Share {
    int row, unit, step;

    INLINE Share(int thread, int threads) : row(thread / UNITS), unit(thread % UNITS), step(threads / UNITS) {
        if (row >= step) row = 1 << 20;
    }

    // Where a thread's part of rows `pitch` elements apart begins.
    INLINE long long element(int pitch) const {
        return static_cast<long long>(row) * pitch + unit * 8;
    }
};

// Copies rows of HEAD elements, `pitch` elements apart, to shared memory; those from `valid` on become zero. `mine` is this thread's
// share of the first row (Share::element); `any` an address that may be given where nothing is read.
INLINE void copy_rows(unsigned to, const Element* mine, int pitch, int rows, int valid, const Share& share, const Element* any) {
    to += share.row * ROW + share.unit * 16;
#pragma unroll 1
    for (int r = share.row; r < rows; r += share.step, mine += share.step * pitch, to += share.step * ROW)
        copy16(to, r < valid ? mine : any, r < valid);
}

// s (16, 16 * GROUPS) += strip (16, HEAD) times the transpose of rows (16 * GROUPS, HEAD).
template <int GROUPS>
INLINE void times_rows(float (*s)[4], const Strip& strip, unsigned rows) {
    unsigned b[4];
#pragma unroll
    for (int k = 0; k < STEPS; ++k) {
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) {
            load4(b, rows + g * 16 * ROW + 32 * k);
            multiply16(s[2 * g], strip.a[k], b[0], b[2]);
            multiply16(s[2 * g + 1], strip.a[k], b[1], b[3]);
        }
    }
    if (ODD) {
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) {
            load2(b, rows + g * 16 * ROW + 32 * STEPS);
            multiply8(s[2 * g], strip.a[STEPS], b[0]);
            multiply8(s[2 * g + 1], strip.a[STEPS], b[1]);
        }
    }
}

// sum (16, HEAD) += weights (16, 16) times rows (16, HEAD).
INLINE void times_columns(float (*sum)[4], const unsigned (&weights)[4], unsigned rows) {
    unsigned b[4];
#pragma unroll
    for (int n = 0; n < STEPS; ++n) {
        load4_transposed(b, rows + 32 * n);
        multiply16(sum[2 * n], weights, b[0], b[1]);
        multiply16(sum[2 * n + 1], weights, b[2], b[3]);
    }
    if (ODD) {
        load2_transposed(b, rows + 32 * STEPS);
        multiply16(sum[2 * STEPS], weights, b[0], b[1]);
    }
}

// Two accumulators side by side as a left factor.
INLINE void as_factor(unsigned (&a)[4], const float (*s)[4]) {
    a[0] = packed(s[0][0], s[0][1]);
    a[1] = packed(s[0][2], s[0][3]);
    a[2] = packed(s[1][0], s[1][1]);
    a[3] = packed(s[1][2], s[1][3]);
}

// Writes a warp's 16 rows, scaled, by way of its own 16 rows of shared memory.
INLINE void store_strip(const float (*sum)[4], float upper, float lower, unsigned char* room, Element* to, int pitch, int valid, int lane) {
    __syncwarp();
    unsigned char* mine = room + lane / 4 * ROW + lane % 4 * 4;
#pragma unroll
    for (int n = 0; n < UNITS; ++n) {
        *reinterpret_cast<unsigned*>(mine + 16 * n) = packed(sum[n][0] * upper, sum[n][1] * upper);
        *reinterpret_cast<unsigned*>(mine + 8 * ROW + 16 * n) = packed(sum[n][2] * lower, sum[n][3] * lower);
    }
    __syncwarp();
    const Share share(lane, 32);
#pragma unroll 1
    for (int r = share.row; r < valid; r += share.step)
        *reinterpret_cast<uint4*>(to + static_cast<long long>(r) * pitch + share.unit * 8) =
            *reinterpret_cast<const uint4*>(room + r * ROW + share.unit * 16);
}

// What a warp knows of its 16 queries after some keys.
struct Progress {
    float sum[UNITS][4];  // of the weighted values
    float most[2];        // greatest score, before scaling
    float total[2];       // of this lane's weights
};

// Takes in 16 * GROUPS keys and values. MASKED: only the first `valid` exist.
template <int GROUPS, bool MASKED>
INLINE void take_in(Progress& progress, const Strip& queries, unsigned keys, unsigned values, int valid, int lane) {
    const float scale = score_scale() * LOG2_E;
    float s[2 * GROUPS][4];
#pragma unroll
    for (int n = 0; n < 2 * GROUPS; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.f;
    times_rows<GROUPS>(s, queries, keys);
    if (MASKED) {
#pragma unroll
        for (int n = 0; n < 2 * GROUPS; ++n) {
            const int column = 8 * n + 2 * (lane % 4);
            if (column >= valid) s[n][0] = s[n][2] = -infinite();
            if (column + 1 >= valid) s[n][1] = s[n][3] = -infinite();
        }
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float most = progress.most[half];
#pragma unroll
        for (int n = 0; n < 2 * GROUPS; ++n) most = fmaxf(most, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        most = fmaxf(most, across(most, 1));
        most = fmaxf(most, across(most, 2));
        const float shrink = power_of_two((progress.most[half] - most) * scale);
        progress.most[half] = most;
        float total = progress.total[half] * shrink;
#pragma unroll
        for (int n = 0; n < 2 * GROUPS; ++n) {
            s[n][2 * half] = power_of_two(fmaf(s[n][2 * half], scale, -most * scale));
            s[n][2 * half + 1] = power_of_two(fmaf(s[n][2 * half + 1], scale, -most * scale));
            total += s[n][2 * half] + s[n][2 * half + 1];
        }
        progress.total[half] = total;
#pragma unroll
        for (int n = 0; n < UNITS; ++n) {
            progress.sum[n][2 * half] *= shrink;
            progress.sum[n][2 * half + 1] *= shrink;
        }
    }

#pragma unroll
    for (int g = 0; g < GROUPS; ++g) {
        unsigned weights[4];
        as_factor(weights, s + 2 * g);
        times_columns(progress.sum, weights, values + g * 16 * ROW);
    }
}

extern "C" __global__ void __launch_bounds__(32 * FORWARD_WARPS, FORWARD_BLOCKS)
    attention_forward(const Element* __restrict__ qkv, Element* __restrict__ out, float* __restrict__ lse, int batch, int tokens, int heads) {
    const int lane = threadIdx.x % 32, warp = uniform(threadIdx.x / 32), rows = blockDim.x / 2;
    const Corner at = corner(tokens, heads);
    const int pitch = 3 * at.width;

    // Shared memory: the queries, then two stages of keys and values.
    const int first = blockIdx.x * rows + warp * 16;  // of the warp's queries
    const int mine = min(16, tokens - first);         // how many there are: none if not positive
    unsigned char* room = arena + warp * 16 * ROW;
    const unsigned stages = shared_address(arena) + rows * ROW;
    if (mine > 0) {
        const Share share(lane, 32);
        copy_rows(shared_address(room), qkv + at.packed + static_cast<long long>(first) * pitch + share.element(pitch), pitch, 16, mine, share, qkv);
    }

    const int tiles = (tokens + COLUMNS - 1) / COLUMNS;
    const Share share(threadIdx.x, blockDim.x);
    const Element* next = qkv + at.packed + at.width + share.element(pitch);  // this thread's share of the next tile's keys
    const auto fetch = [&](int tile) {
        const unsigned to = stages + (tile & 1) * 2 * STAGE;
        const int valid = tokens - tile * COLUMNS;
        copy_rows(to, next, pitch, COLUMNS, valid, share, qkv);
        copy_rows(to + STAGE, next + at.width, pitch, COLUMNS, valid, share, qkv);
        next += COLUMNS * pitch;
    };
    fetch(0);

    Strip strip;
    Progress progress;
    progress.most[0] = progress.most[1] = -infinite();
    progress.total[0] = progress.total[1] = 0.f;
#pragma unroll
    for (int n = 0; n < UNITS; ++n) progress.sum[n][0] = progress.sum[n][1] = progress.sum[n][2] = progress.sum[n][3] = 0.f;

    for (int tile = 0; tile < tiles; ++tile) {
        copies_done();
        __syncthreads();  // the tile has come, and nobody reads the one before it any more
        if (tile + 1 < tiles) fetch(tile + 1);
        if (mine <= 0) continue;
        if (tile == 0) strip.load(shared_address(room) + lane_place(lane));
        const unsigned from = stages + (tile & 1) * 2 * STAGE + lane_place(lane);
        const int valid = tokens - tile * COLUMNS;
        if (valid >= COLUMNS) {
            take_in<COLUMNS / 16, false>(progress, strip, from, from + STAGE, valid, lane);
        } else {
#pragma unroll 1
            for (int key = 0; key < valid; key += 16)
                take_in<1, true>(progress, strip, from + key * ROW, from + key * ROW + STAGE, valid - key, lane);
        }
    }
    if (mine <= 0) return;

#pragma unroll
    for (int half = 0; half < 2; ++half) {
        progress.total[half] += across(progress.total[half], 1);
        progress.total[half] += across(progress.total[half], 2);
    }
    if (lse != nullptr && lane % 4 == 0) {
        const float scale = score_scale();
        float* to = lse + at.row + first;
        if (lane / 4 < mine) to[lane / 4] = fmaf(progress.most[0], scale, logf(progress.total[0]));
        if (lane / 4 + 8 < mine) to[lane / 4 + 8] = fmaf(progress.most[1], scale, logf(progress.total[1]));
    }
    store_strip(progress.sum, 1.f / progress.total[0], 1.f / progress.total[1], room, out + at.plain + static_cast<long long>(first) * at.width,
                at.width, mine, lane);
}

// The gradient of 16 rows a warp: KEYS: of keys and values, passing all queries; otherwise of queries, passing all keys.
//
// With rows a1 (keys or queries) and a2 (values or dout), and the other side's b1 (queries or keys) and b2 (dout or values):
//   s = a1 b1ᵀ, p = exp(s * scale - lse), e = p * (a2 b2ᵀ - delta); sum1 += e b1 (times scale: dk or dq); KEYS: sum2 += p b2 (dv).
template <bool KEYS>
INLINE void backward_rows(const Element* __restrict__ qkv, const Element* __restrict__ dout, const float* __restrict__ lse,
                          const float* __restrict__ delta, Element* __restrict__ dqkv, int block, int tokens, int heads) {
    // Whether the rows' factors stay in registers: two accumulators and two factors of a wide head do not fit.
    constexpr bool KEPT = HEAD <= 96 || !KEYS;
    const int lane = threadIdx.x % 32, warp = uniform(threadIdx.x / 32), rows = blockDim.x / 2;
    const Corner at = corner(tokens, heads);
    const int pitch = 3 * at.width;
    lse += at.row;
    delta += at.row;

    // Shared memory: a1 and a2 of each warp, two stages of b1 and b2, two stages of lse and delta of b's queries.
    const int first = block * rows + warp * 16;
    const int mine = min(16, tokens - first);
    unsigned char* room = arena + warp * 32 * ROW;
    const unsigned stages = shared_address(arena) + 2 * rows * ROW;
    const float* numbers = reinterpret_cast<const float*>(arena + 2 * rows * ROW + 4 * STAGE);
    // The queries or keys, and what lies beside them: dout, or the values.
    const Element* queries = qkv + at.packed;
    const Element* keys = queries + at.width;
    const int slope_pitch = at.width, pitch_a2 = KEYS ? pitch : slope_pitch, pitch_b2 = KEYS ? slope_pitch : pitch;
    const Element* slopes = dout + at.plain;
    if (mine > 0) {
        const Share share(lane, 32);
        const Element* a1 = (KEYS ? keys : queries) + static_cast<long long>(first) * pitch;
        const Element* a2 = KEYS ? a1 + at.width : slopes + static_cast<long long>(first) * slope_pitch;
        copy_rows(shared_address(room), a1 + share.element(pitch), pitch, 16, mine, share, qkv);
        copy_rows(shared_address(room) + 16 * ROW, a2 + share.element(pitch_a2), pitch_a2, 16, mine, share, qkv);
    }

    const int tiles = (tokens + COLUMNS - 1) / COLUMNS;
    const Share share(threadIdx.x, blockDim.x);
    const Element* next1 = (KEYS ? queries : keys) + share.element(pitch);  // this thread's share of the next tile
    const Element* next2 = (KEYS ? slopes : keys + at.width) + share.element(pitch_b2);
    const auto fetch = [&](int tile) {
        const unsigned to = stages + (tile & 1) * 2 * STAGE;
        const int from = tile * COLUMNS, valid = tokens - from;
        copy_rows(to, next1, pitch, COLUMNS, valid, share, qkv);
        copy_rows(to + STAGE, next2, pitch_b2, COLUMNS, valid, share, qkv);
        next1 += COLUMNS * pitch;
        next2 += COLUMNS * pitch_b2;
        if (KEYS) {
            const unsigned to = shared_address(numbers) + (tile & 1) * 8 * COLUMNS;
            for (int i = threadIdx.x; i < 2 * COLUMNS; i += blockDim.x) {
                const int column = i % COLUMNS;
                const bool inside = column < valid;
                copy4(to + 4 * i, (i < COLUMNS ? lse : delta) + (inside ? from + column : 0), inside);
            }
        }
    };
    fetch(0);

    const float scale = score_scale();
    float row_lse[2] = {}, row_delta[2] = {};
    if (!KEYS) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int r = lane / 4 + 8 * half;
            if (r < mine) {
                row_lse[half] = lse[first + r] * LOG2_E;
                row_delta[half] = delta[first + r];
            }
        }
    }

    Strip a1, a2;
    float sum1[UNITS][4], sum2[KEYS ? UNITS : 1][4];
#pragma unroll
    for (int n = 0; n < UNITS; ++n) sum1[n][0] = sum1[n][1] = sum1[n][2] = sum1[n][3] = 0.f;
    if (KEYS) {
#pragma unroll
        for (int n = 0; n < UNITS; ++n) sum2[n][0] = sum2[n][1] = sum2[n][2] = sum2[n][3] = 0.f;
    }

    for (int tile = 0; tile < tiles; ++tile) {
        copies_done();
        __syncthreads();  // the tile has come, and nobody reads the one before it any more
        if (tile + 1 < tiles) fetch(tile + 1);
        if (mine <= 0) continue;
        const unsigned own = shared_address(room) + lane_place(lane);
        if (KEPT && tile == 0) {
            a1.load(own);
            a2.load(own + 16 * ROW);
        }
        const int valid = min(COLUMNS, tokens - tile * COLUMNS);
        unsigned b1 = stages + (tile & 1) * 2 * STAGE + lane_place(lane);
        const float* here = numbers + (tile & 1) * 2 * COLUMNS + 2 * (lane % 4);
#pragma unroll 1
        for (int column = 0; column < valid; column += 16, b1 += 16 * ROW, here += 16) {
            const unsigned b2 = b1 + STAGE;
            float s[2][4] = {}, e[2][4] = {};
            if (!KEPT) a1.load(own);
            times_rows<1>(s, a1, b1);
            if (!KEPT) a2.load(own + 16 * ROW);
            times_rows<1>(e, a2, b2);
            // Queries past the end have zeros everywhere and add nothing; keys past the end are taken out by hand, for exp(-lse)
            // need not be finite; rows past the end are not written.
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                float column_lse[2] = {}, column_delta[2] = {};
                if (KEYS) {
                    const float2 pair = *reinterpret_cast<const float2*>(here + 8 * n);
                    const float2 deltas = *reinterpret_cast<const float2*>(here + COLUMNS + 8 * n);
                    column_lse[0] = pair.x * LOG2_E;
                    column_lse[1] = pair.y * LOG2_E;
                    column_delta[0] = deltas.x;
                    column_delta[1] = deltas.y;
                }
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    s[n][i] = power_of_two(fmaf(s[n][i], scale * LOG2_E, -(KEYS ? column_lse[i % 2] : row_lse[i / 2])));
                    e[n][i] = s[n][i] * (e[n][i] - (KEYS ? column_delta[i % 2] : row_delta[i / 2]));
                }
            }
            if (!KEYS && column + 16 > valid) {
#pragma unroll
                for (int n = 0; n < 2; ++n) {
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        if (column + 8 * n + 2 * (lane % 4) + i % 2 >= valid) e[n][i] = 0.f;
                }
            }
            unsigned factor[4];
            if (KEYS) {
                as_factor(factor, s);
                times_columns(sum2, factor, b2);
            }
            as_factor(factor, e);
            times_columns(sum1, factor, b1);
        }
    }
    if (mine <= 0) return;

    Element* to = dqkv + at.packed + static_cast<long long>(first) * pitch;
    store_strip(sum1, scale, scale, room, to + (KEYS ? at.width : 0), pitch, mine, lane);
    if (KEYS) store_strip(sum2, 1.f, 1.f, room + 16 * ROW, to + 2 * at.width, pitch, mine, lane);
}

extern "C" __global__ void __launch_bounds__(32 * BACKWARD_WARPS, BACKWARD_BLOCKS)
    attention_backward(const Element* __restrict__ qkv, const Element* __restrict__ dout, const float* __restrict__ lse,
                       const float* __restrict__ delta, Element* __restrict__ dqkv, int batch, int tokens, int heads) {
    const int half = gridDim.x / 2, block = blockIdx.x;
    if (block < half) {
        backward_rows<true>(qkv, dout, lse, delta, dqkv, block, tokens, heads);
    } else {
        backward_rows<false>(qkv, dout, lse, delta, dqkv, block - half, tokens, heads);
    }
}

#else

// ============================================================================================= f32
//
// A block of 128 threads holds 32 rows against 32 columns at a time. Thread (y, x) of 16 by 8 has rows 2 y and 2 y + 1, scores
// of columns x, x + 8, x + 16, x + 24, and elements x, x + 8, ... of its rows' sums.

constexpr int TILE = 32;
constexpr int LINE = HEAD + 4;  // floats of a row in shared memory: an odd number of units of 4, so that 8 rows do not conflict
constexpr int WIDE = TILE + 4;  // of a row of weights

// Copies rows of HEAD floats, `pitch` apart, to shared memory; those from `valid` on become zero.
INLINE void copy_rows(float* to, const float* from, long long pitch, int valid) {
    for (int i = threadIdx.x; i < TILE * (HEAD / 4); i += 128) {
        const int r = i / (HEAD / 4), unit = i % (HEAD / 4);
        float4 four = {0.f, 0.f, 0.f, 0.f};
        if (r < valid) four = *reinterpret_cast<const float4*>(from + r * pitch + unit * 4);
        *reinterpret_cast<float4*>(to + r * LINE + unit * 4) = four;
    }
}

// s[r][c] = row 2 y + r of `rows` times row x + 8 c of `columns`.
INLINE void scores(float (&s)[2][4], const float* rows, const float* columns, int y, int x) {
#pragma unroll
    for (int r = 0; r < 2; ++r) s[r][0] = s[r][1] = s[r][2] = s[r][3] = 0.f;
#pragma unroll 4
    for (int k = 0; k < HEAD; k += 4) {
        float4 b[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) b[c] = *reinterpret_cast<const float4*>(columns + (x + 8 * c) * LINE + k);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float4 a = *reinterpret_cast<const float4*>(rows + (2 * y + r) * LINE + k);
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                s[r][c] = fmaf(a.x, b[c].x, s[r][c]);
                s[r][c] = fmaf(a.y, b[c].y, s[r][c]);
                s[r][c] = fmaf(a.z, b[c].z, s[r][c]);
                s[r][c] = fmaf(a.w, b[c].w, s[r][c]);
            }
        }
    }
}

// sum[r][i] += the weights (of this thread's rows, over 32 columns) times elements x + 8 i of the rows of `columns`.
INLINE void weigh(float (&sum)[2][UNITS], const float* weights, const float* columns, int y, int x) {
#pragma unroll 4
    for (int c = 0; c < TILE; ++c) {
        const float w0 = weights[2 * y * WIDE + c], w1 = weights[(2 * y + 1) * WIDE + c];
#pragma unroll
        for (int i = 0; i < UNITS; ++i) {
            const float v = columns[c * LINE + x + 8 * i];
            sum[0][i] = fmaf(w0, v, sum[0][i]);
            sum[1][i] = fmaf(w1, v, sum[1][i]);
        }
    }
}

INLINE void put(float* weights, const float (&s)[2][4], int y, int x) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int c = 0; c < 4; ++c) weights[(2 * y + r) * WIDE + x + 8 * c] = s[r][c];
    }
}

extern "C" __global__ void __launch_bounds__(128, 3)
    attention_forward(const float* __restrict__ qkv, float* __restrict__ out, float* __restrict__ lse, int batch, int tokens, int heads) {
    float* queries = reinterpret_cast<float*>(arena);
    float* keys = queries + TILE * LINE;
    float* values = keys + TILE * LINE;
    float* weights = values + TILE * LINE;
    const int y = threadIdx.x / 8, x = threadIdx.x % 8, first = blockIdx.x * TILE;
    const Corner at = corner(tokens, heads);
    const float* from = qkv + at.packed;
    const long long plain = at.width, pitch = 3 * plain;
    const float scale = score_scale();

    copy_rows(queries, from + first * pitch, pitch, tokens - first);
    float sum[2][UNITS] = {}, most[2] = {-infinite(), -infinite()}, total[2] = {};
    for (int begin = 0; begin < tokens; begin += TILE) {
        __syncthreads();  // nobody reads the tile before it any more
        copy_rows(keys, from + at.width + begin * pitch, pitch, tokens - begin);
        copy_rows(values, from + 2 * at.width + begin * pitch, pitch, tokens - begin);
        __syncthreads();
        float s[2][4];
        scores(s, queries, keys, y, x);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float greatest = most[r];
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                s[r][c] = begin + x + 8 * c < tokens ? s[r][c] * scale : -infinite();
                greatest = fmaxf(greatest, s[r][c]);
            }
            greatest = fmaxf(greatest, across(greatest, 1));
            greatest = fmaxf(greatest, across(greatest, 2));
            greatest = fmaxf(greatest, across(greatest, 4));
            const float shrink = expf(most[r] - greatest);
            most[r] = greatest;
            total[r] *= shrink;
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                s[r][c] = expf(s[r][c] - greatest);
                total[r] += s[r][c];
            }
#pragma unroll
            for (int i = 0; i < UNITS; ++i) sum[r][i] *= shrink;
        }
        put(weights, s, y, x);
        __syncwarp();  // a row's weights belong to eight lanes of one warp
        weigh(sum, weights, values, y, x);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        total[r] += across(total[r], 1);
        total[r] += across(total[r], 2);
        total[r] += across(total[r], 4);
        const int query = first + 2 * y + r;
        if (query >= tokens) continue;
        if (lse != nullptr && x == 0) lse[at.row + query] = most[r] + logf(total[r]);
        const float inverse = 1.f / total[r];
        float* to = out + at.plain + query * plain;
#pragma unroll
        for (int i = 0; i < UNITS; ++i) to[x + 8 * i] = sum[r][i] * inverse;
    }
}

// As in the 2-byte types, for 32 rows a block.
template <bool KEYS>
INLINE void backward_rows(const float* __restrict__ qkv, const float* __restrict__ dout, const float* __restrict__ lse,
                          const float* __restrict__ delta, float* __restrict__ dqkv, int block, int tokens, int heads) {
    float* a1 = reinterpret_cast<float*>(arena);
    float* a2 = a1 + TILE * LINE;
    float* b1 = a2 + TILE * LINE;
    float* b2 = b1 + TILE * LINE;
    float* p = b2 + TILE * LINE;
    float* e = p + TILE * WIDE;
    float* logs = e + TILE * WIDE;  // of the queries of the tile
    float* deltas = logs + TILE;
    const int y = threadIdx.x / 8, x = threadIdx.x % 8, first = block * TILE;
    const Corner at = corner(tokens, heads);
    const long long plain = at.width, pitch = 3 * plain;
    const float* queries = qkv + at.packed;
    const float* keys = queries + at.width;
    const float* values = keys + at.width;
    const float* slopes = dout + at.plain;
    const float scale = score_scale();

    const auto fetch_numbers = [&](int begin) {
        if (threadIdx.x < 2 * TILE) {
            const int i = threadIdx.x % TILE;
            const float* from = (threadIdx.x < TILE ? lse : delta) + at.row;
            logs[threadIdx.x] = begin + i < tokens ? from[begin + i] : 0.f;
        }
    };
    copy_rows(a1, (KEYS ? keys : queries) + first * pitch, pitch, tokens - first);
    copy_rows(a2, KEYS ? values + first * pitch : slopes + first * plain, KEYS ? pitch : plain, tokens - first);
    if (!KEYS) fetch_numbers(first);

    float sum1[2][UNITS] = {}, sum2[2][UNITS] = {};
    for (int begin = 0; begin < tokens; begin += TILE) {
        __syncthreads();  // nobody reads the tile before it any more
        copy_rows(b1, (KEYS ? queries : keys) + begin * pitch, pitch, tokens - begin);
        copy_rows(b2, KEYS ? slopes + begin * plain : values + begin * pitch, KEYS ? plain : pitch, tokens - begin);
        if (KEYS) fetch_numbers(begin);
        __syncthreads();
        float s[2][4], g[2][4];
        scores(s, a1, b1, y, x);
        scores(g, a2, b2, y, x);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                const int query = KEYS ? x + 8 * c : 2 * y + r;
                const bool inside = begin + x + 8 * c < tokens;
                s[r][c] = inside ? expf(s[r][c] * scale - logs[query]) : 0.f;
                g[r][c] = s[r][c] * (g[r][c] - deltas[query]);
            }
        }
        if (KEYS) put(p, s, y, x);
        put(e, g, y, x);
        __syncwarp();  // a row's weights belong to eight lanes of one warp
        if (KEYS) weigh(sum2, p, b2, y, x);
        weigh(sum1, e, b1, y, x);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int row = first + 2 * y + r;
        if (row >= tokens) continue;
        float* to = dqkv + at.packed + row * pitch + (KEYS ? at.width : 0);
#pragma unroll
        for (int i = 0; i < UNITS; ++i) {
            to[x + 8 * i] = sum1[r][i] * scale;
            if (KEYS) to[at.width + x + 8 * i] = sum2[r][i];
        }
    }
}

extern "C" __global__ void __launch_bounds__(128, 3)
    attention_backward(const float* __restrict__ qkv, const float* __restrict__ dout, const float* __restrict__ lse,
                       const float* __restrict__ delta, float* __restrict__ dqkv, int batch, int tokens, int heads) {
    const int half = gridDim.x / 2, block = blockIdx.x;
    if (block < half) {
        backward_rows<true>(qkv, dout, lse, delta, dqkv, block, tokens, heads);
    } else {
        backward_rows<false>(qkv, dout, lse, delta, dqkv, block - half, tokens, heads);
    }
}

#endif

// ============================================================================================= all types

// The product of 8 elements with 8 others, summed.
INLINE float dot8(const Element* a, const Element* b) {
    float sum = 0.f;
#if defined(F32)
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
        const float4 x = *reinterpret_cast<const float4*>(a + i), y = *reinterpret_cast<const float4*>(b + i);
        sum = fmaf(x.x, y.x, fmaf(x.y, y.y, fmaf(x.z, y.z, fmaf(x.w, y.w, sum))));
    }
#else
    const uint4 x = *reinterpret_cast<const uint4*>(a), y = *reinterpret_cast<const uint4*>(b);
    const unsigned xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        sum = fmaf(widened(xs[i] & 0xffffu), widened(ys[i] & 0xffffu), sum);
        sum = fmaf(widened(xs[i] >> 16), widened(ys[i] >> 16), sum);
    }
#endif
    return sum;
}

// delta (B, heads, T): the sums of out * dout over each head. A thread takes 8 elements, as they lie in memory.
extern "C" __global__ void __launch_bounds__(256)
    attention_backward_delta(const Element* __restrict__ out, const Element* __restrict__ dout, float* __restrict__ delta, int batch, int tokens,
                             int heads) {
    float* parts = reinterpret_cast<float*>(arena);
    constexpr unsigned GROUPS = 256 / UNITS;  // heads of tokens in a block
    const unsigned thread = threadIdx.x, first = blockIdx.x * GROUPS, count = batch * tokens * heads;
    if (thread < GROUPS * UNITS && first + thread / UNITS < count) {
        const long long at = static_cast<long long>(first) * HEAD + thread * 8;
        parts[thread] = dot8(out + at, dout + at);
    }
    __syncthreads();
    if (thread < GROUPS && first + thread < count) {
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < UNITS; ++i) sum += parts[thread * UNITS + i];
        const unsigned group = first + thread, token = group / heads, sample = token / tokens;
        delta[(sample * heads + group % heads) * tokens + token % tokens] = sum;
    }
}
