// Convolution of pictures with kernels of 3x3 on tensor cores: forward, the gradient of the picture (a convolution of
// the result's gradient with the turned kernel), and the gradient of the kernel.
//
// Compiled once for each of these, with BF16 or F16:
//   -DHEAD=64   places of the kernel are 1 apart: 64 channels of 18x18 pixels are in shared memory at a time
//   -DHEAD=16   they are 2 apart: 16 channels of 33x33 pixels
//   -DSTEPS=n   conv_forward's blocks make 8 n channels of the result: 1, 8 or 16; without it conv_weight is compiled
//
// Pictures are (B, C, H, W), contiguous. A pixel of the padded picture at (u, v) is the source's at (u / zoom, v / zoom)
// if zoom > 0, so that a larger picture is never written down; if zoom < 0 it is the source's at (u / -zoom, v / -zoom)
// where both are whole, and 0 elsewhere, which is the gradient of a stride.
//
// In shared memory a pixel's channels are neighbours, an odd number of 16-byte units for each pixel: the rows of an 8x8
// matrix are pixels, so that a place of the kernel is an offset, and they meet eight different groups of banks.
//
//   kernel         block  grid                                    dynamic shared memory, bytes
//   conv_pack      256    ceil(chunks * 9 * wide * HEAD / 256)    0
//   conv_forward   256    (tiles, wide / (8 STEPS), B)            PIXELS * ROW * (chunks > 1 ? 2 : 1) + 3 * 8 STEPS * ROW, at least 40960
//   conv_weight    256    (splits, ceil(O / 64), ceil(C / 64))    see ROOM
// with chunks = ceil(C / HEAD), wide = O rounded up to 8 STEPS, tiles = ceil(OH / 16) ceil(OW / 16).

#define STRIDE (HEAD == 64 ? 1 : 2)

typedef unsigned short Element;

constexpr int CHUNK = HEAD;
constexpr int SPAN = 15 * STRIDE + 3;

INLINE void commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most one group of this thread's copies is under way.
INLINE void all_but_one() {
    asm volatile("cp.async.wait_group 1;" ::: "memory");
}

struct Picture {
    const Element* at;  // the first pixel of the sample
    int channels, height, width, zoom;

    // Where the source pixel of (u, v) is, or -1 for a zero.
    INLINE int place(int u, int v) const {
        if (u < 0 || v < 0) return -1;
        if (zoom == 1) return u < height && v < width ? u * width + v : -1;
        int z = zoom > 0 ? zoom : -zoom, y = u / z, x = v / z;
        if (y >= height || x >= width || (zoom < 0 && (y * z != u || x * z != v))) return -1;
        return y * width + x;
    }

    // Eight channels of a pixel.
    INLINE void read(unsigned (&r)[4], int channel, int place) const {
        const long long area = (long long)height * width;
        const Element* p = at + channel * area + place;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            unsigned low = place >= 0 && channel + 2 * i < channels ? p[2 * i * area] : 0;
            unsigned high = place >= 0 && channel + 2 * i + 1 < channels ? p[(2 * i + 1) * area] : 0;
            r[i] = low | high << 16;
        }
    }
};

INLINE void put16(unsigned char* to, const unsigned (&r)[4]) {
    *reinterpret_cast<uint4*>(to) = make_uint4(r[0], r[1], r[2], r[3]);
}

#ifdef STEPS
constexpr int PIXELS = SPAN * SPAN;
constexpr int ROW = CHUNK * 2 + 16;                     // bytes of a pixel's channels
constexpr int UNITS = CHUNK / 8;                        // of 16 bytes

// w (O, I, 3, 3) as chunk, place, row, channel with zeros where there is nothing. Turned: rows are inputs, channels
// outputs, and places run backwards.
extern "C" __global__ void conv_pack(const Element* w, Element* out, int outputs, int inputs, int wide, int turned, long long count) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= count) return;
    int c = i % CHUNK, row = i / CHUNK % wide, place = i / CHUNK / wide % 9, channel = (int)(i / CHUNK / wide / 9) * CHUNK + c;
    int o = turned ? channel : row, k = turned ? row : channel;
    out[i] = o < outputs && k < inputs ? w[((long long)o * inputs + k) * 9 + (turned ? 8 - place : place)] : 0;
}

constexpr int COLUMNS = 8 * STEPS;                      // channels of the result
constexpr int ACROSS = COLUMNS > 64 ? 2 : 1;            // warps side by side
constexpr int GROUPS = (COLUMNS / ACROSS) / 8;          // of eight channels, of a warp
constexpr int STRIPS = 16 / (8 / ACROSS);               // rows of 16 pixels, of a warp
constexpr int STAGE = COLUMNS * ROW;                    // bytes of the weights of a place

INLINE void fetch_weights(unsigned to, const Element* from) {
#pragma unroll 1
    for (int i = threadIdx.x; i < COLUMNS * UNITS; i += 256)
        copy16(to + i / UNITS * ROW + i % UNITS * 16, from + (long long)i * 8, true);
}

// act(conv + bias + add); bias and add may be null. most: the cap.
extern "C" __global__ void __launch_bounds__(256, COLUMNS <= 64 ? 2 : 1) conv_forward(
    const Element* x, const Element* weights, const Element* bias, const Element* add, Element* y, int channels, int height, int width,
    int zoom, int before, int outputs, int out_h, int out_w, int relu, float most, int wide_rows) {
    const int warp = uniform(threadIdx.x / 32), lane = threadIdx.x % 32;
    const int across = (out_w + 15) / 16;
    const int top = blockIdx.x / across * 16, left = blockIdx.x % across * 16;
    const int first = blockIdx.y * COLUMNS;
    const int wide = gridDim.y * COLUMNS;
    const int chunks = (channels + CHUNK - 1) / CHUNK;
    const Picture picture = {x + (long long)blockIdx.z * channels * height * width, channels, height, width, zoom};
    const int at_u = top * STRIDE - before, at_v = left * STRIDE - before;
    const unsigned input = shared_address(arena);
    const unsigned factors = input + PIXELS * ROW * (chunks > 1 ? 2 : 1);

    auto weights_of = [&](int stage) {
        if (stage < chunks * 9) fetch_weights(factors + stage % 3 * STAGE, weights + ((long long)stage * wide + first) * CHUNK);
        commit();
    };
    weights_of(0);
    weights_of(1);
#pragma unroll 1
    for (int task = threadIdx.x; task < PIXELS * UNITS; task += 256) {
        int pixel = task % PIXELS, unit = task / PIXELS;
        unsigned r[4];
        picture.read(r, unit * 8, picture.place(at_u + pixel / SPAN, at_v + pixel % SPAN));
        put16(arena + pixel * ROW + unit * 16, r);
    }

    const int strip = warp / ACROSS * STRIPS, column = warp % ACROSS * (GROUPS * 8);
    float sum[STRIPS][GROUPS][4];
#pragma unroll
    for (int m = 0; m < STRIPS; ++m)
#pragma unroll
        for (int n = 0; n < GROUPS; ++n) sum[m][n][0] = sum[m][n][1] = sum[m][n][2] = sum[m][n][3] = 0.f;

    // What of the next chunk is read while a place is worked on.
    constexpr int PART = (PIXELS * UNITS + 8) / 9, ROUNDS = (PART + 255) / 256;
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
        const unsigned here = input + chunk % 2 * PIXELS * ROW;
        const int depth = min(CHUNK, channels - chunk * CHUNK);
#pragma unroll 1
        for (int place = 0; place < 9; ++place) {
            const int stage = chunk * 9 + place;
            all_but_one();
            __syncthreads();
            weights_of(stage + 2);
            unsigned next[ROUNDS][4];
            if (chunk + 1 < chunks) {
#pragma unroll
                for (int round = 0; round < ROUNDS; ++round) {
                    int within = round * 256 + threadIdx.x, task = place * PART + within;
                    if (within < PART && task < PIXELS * UNITS) {
                        int pixel = task % PIXELS, unit = task / PIXELS;
                        picture.read(next[round], (chunk + 1) * CHUNK + unit * 8, picture.place(at_u + pixel / SPAN, at_v + pixel % SPAN));
                    }
                }
            }
            const unsigned b_at = factors + stage % 3 * STAGE + (column + (lane & 7) + (lane >> 4) * 8) * ROW + (lane >> 3 & 1) * 16;
            const unsigned b_one = factors + stage % 3 * STAGE + (column + (lane & 7)) * ROW + (lane >> 3 & 1) * 16;
            const unsigned a_at =
                here + ((strip * STRIDE + place / 3) * SPAN + (lane & 15) * STRIDE + place % 3) * ROW + (lane >> 4) * 16;
#pragma unroll
            for (int k = 0; k < CHUNK / 16; ++k) {
                if (k * 16 < depth) {
                    unsigned a[STRIPS][4];
#pragma unroll
                    for (int m = 0; m < STRIPS; ++m) load4(a[m], a_at + m * STRIDE * SPAN * ROW + k * 32);
                    if (GROUPS == 1) {
                        unsigned b[4];
                        load2(b, b_one + k * 32);
#pragma unroll
                        for (int m = 0; m < STRIPS; ++m) multiply16(sum[m][0], a[m], b[0], b[1]);
                    } else {
#pragma unroll
                        for (int n = 0; n < GROUPS / 2; ++n) {
                            unsigned b[4];
                            load4(b, b_at + n * 16 * ROW + k * 32);
#pragma unroll
                            for (int m = 0; m < STRIPS; ++m) {
                                multiply16(sum[m][2 * n], a[m], b[0], b[1]);
                                multiply16(sum[m][2 * n + 1], a[m], b[2], b[3]);
                            }
                        }
                    }
                }
            }
            if (chunk + 1 < chunks) {
#pragma unroll
                for (int round = 0; round < ROUNDS; ++round) {
                    int within = round * 256 + threadIdx.x, task = place * PART + within;
                    if (within < PART && task < PIXELS * UNITS)
                        put16(arena + (chunk + 1) % 2 * PIXELS * ROW + task % PIXELS * ROW + task / PIXELS * 16, next[round]);
                }
            }
        }
    }

    // By way of shared memory, so that a lane has eight neighbouring pixels of a channel.
    __syncthreads();
    constexpr int PITCH = 20;  // floats of a channel's 16 pixels
    float* room = reinterpret_cast<float*>(arena) + warp * (GROUPS * 8 * PITCH);
    const long long area = (long long)out_h * out_w;
#pragma unroll
    for (int m = 0; m < STRIPS; ++m) {
        const int row = top + strip + m;
        __syncwarp();
#pragma unroll
        for (int n = 0; n < GROUPS; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) room[(n * 8 + lane % 4 * 2 + i % 2) * PITCH + lane / 4 + i / 2 * 8] = sum[m][n][i];
        }
        __syncwarp();
        if (row >= out_h) continue;
#pragma unroll 1
        for (int task = lane; task < GROUPS * 16; task += 32) {
            const int c = task / 2, channel = first + column + c, pixel = left + task % 2 * 8;
            if (channel >= outputs || pixel >= out_w) continue;
            const long long at = ((long long)blockIdx.z * outputs + channel) * area + (long long)row * out_w + pixel;
            const float shift = bias ? widened(bias[channel]) : 0.f;
            const float* from = room + c * PITCH + task % 2 * 8;
            const int count = min(8, out_w - pixel);
            union {
                uint4 whole;
                Element each[8];
            } other, out;
            if (wide_rows) {
                if (add) other.whole = *reinterpret_cast<const uint4*>(add + at);
            } else if (add) {
                for (int i = 0; i < count; ++i) other.each[i] = add[at + i];
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                float value = from[i] + shift;
                if (add) value += widened(other.each[i]);
                if (relu && value < 0.f) value = 0.f;
                if (value > most) value = most;
                out.each[i] = (Element)(packed(value, 0.f) & 0xffff);
            }
            if (wide_rows) {
                *reinterpret_cast<uint4*>(y + at) = out.whole;
            } else {
                for (int i = 0; i < count; ++i) y[at + i] = out.each[i];
            }
        }
    }
}
#else

// ---- the gradient of the kernel
//
// A block takes 64 outputs and 64 inputs through its share of the tiles, which are DEPTH rows of 16 pixels of the result, with all
// sums in registers: a warp 16 outputs and 32 inputs, for all nine places. Every split leaves its sums in `partial`
// (splits, O blocks, C blocks, 9, 64, 64) in f32; conv_weight_finish adds them up in order.

constexpr int DEPTH = STRIDE == 1 ? 16 : 4;
constexpr int TALL = (DEPTH - 1) * STRIDE + 3;
constexpr int SEEN = TALL * SPAN;
constexpr int PIXEL = 64 * 2 + 16;               // bytes of a pixel's 64 channels
constexpr int LINE = DEPTH * 32 + 16;            // bytes of an output's gradient
constexpr int ROOM = SEEN * PIXEL + 64 * LINE;   // of one tile; there are two

extern "C" __global__ void __launch_bounds__(256, 1) conv_weight(
    const Element* x, const Element* g, float* partial, int channels, int height, int width, int zoom, int before, int outputs, int out_h, int out_w,
    int batch, int wide_rows) {
    const int warp = uniform(threadIdx.x / 32), lane = threadIdx.x % 32;
    const int first = blockIdx.y * 64, base = blockIdx.z * 64;
    const int across = (out_w + 15) / 16, down = (out_h + DEPTH - 1) / DEPTH;
    const int tiles = across * down * batch;
    const long long area = (long long)out_h * out_w;

    auto read = [&](unsigned (&r)[4], int tile, int task) {
        const int sample = tile / (across * down), within = tile % (across * down);
        const int at_u = within / across * DEPTH * STRIDE - before, at_v = within % across * 16 * STRIDE - before;
        const Picture picture = {x + (long long)sample * channels * height * width, channels, height, width, zoom};
        const int pixel = task % SEEN;
        picture.read(r, base + task / SEEN * 8, picture.place(at_u + pixel / SPAN, at_v + pixel % SPAN));
    };
    auto put = [&](unsigned char* room, const unsigned (&r)[4], int task) { put16(room + task % SEEN * PIXEL + task / SEEN * 16, r); };
    auto gradients = [&](unsigned char* room, int tile, int from, int until) {
        const int sample = tile / (across * down), within = tile % (across * down);
        const int top = within / across * DEPTH, left = within % across * 16;
#pragma unroll 1
        for (int task = from + threadIdx.x; task < until; task += 256) {
            const int half = task % 2, row = task / 2 % DEPTH, output = task / 2 / DEPTH;
            const int channel = first + output, line = top + row, pixel = left + half * 8;
            const Element* p = g + ((long long)sample * outputs + channel) * area + (long long)line * out_w + pixel;
            unsigned char* to = room + SEEN * PIXEL + output * LINE + row * 32 + half * 16;
            const int count = channel < outputs && line < out_h ? min(8, out_w - pixel) : 0;
            if (wide_rows) {
                copy16(shared_address(to), count > 0 ? p : g, count > 0);
            } else {
                for (int i = 0; i < 8; ++i) reinterpret_cast<Element*>(to)[i] = i < count ? p[i] : 0;
            }
        }
        commit();
    };

    float sum[9][4][4];
#pragma unroll
    for (int p = 0; p < 9; ++p)
#pragma unroll
        for (int n = 0; n < 4; ++n) sum[p][n][0] = sum[p][n][1] = sum[p][n][2] = sum[p][n][3] = 0.f;

    int tile = blockIdx.x;
    if (tile < tiles) {
        gradients(arena, tile, 0, 128 * DEPTH);
#pragma unroll 1
        for (int task = threadIdx.x; task < SEEN * 8; task += 256) {
            unsigned r[4];
            read(r, tile, task);
            put(arena, r, task);
        }
    }
    constexpr int PART = (SEEN * 8 + DEPTH - 1) / DEPTH, ROUNDS = (PART + 255) / 256;
    const int rows = warp % 4 * 16, columns = warp / 4 * 32;
#pragma unroll 1
    for (int turn = 0; tile < tiles; ++turn, tile += gridDim.x) {
        copies_done();
        __syncthreads();
        unsigned char *here = arena + turn % 2 * ROOM, *there = arena + (turn + 1) % 2 * ROOM;
        const int next = tile + gridDim.x;
        if (next < tiles) gradients(there, next, 0, 128 * DEPTH);
        const unsigned a_at = shared_address(here) + SEEN * PIXEL + (rows + (lane & 15)) * LINE + (lane >> 4) * 16;
        const unsigned b_at = shared_address(here) + (lane & 15) * STRIDE * PIXEL + (columns + (lane >> 4) * 8) * 2;
#pragma unroll 1
        for (int row = 0; row < DEPTH; ++row) {
            unsigned ahead[ROUNDS][4];
            if (next < tiles) {
#pragma unroll
                for (int round = 0; round < ROUNDS; ++round) {
                    int within = round * 256 + threadIdx.x, task = row * PART + within;
                    if (within < PART && task < SEEN * 8) read(ahead[round], next, task);
                }
            }
            unsigned a[4];
            load4(a, a_at + row * 32);
#pragma unroll
            for (int place = 0; place < 9; ++place) {
                const unsigned from = b_at + ((row * STRIDE + place / 3) * SPAN + place % 3) * PIXEL;
#pragma unroll
                for (int n = 0; n < 2; ++n) {
                    unsigned b[4];
                    load4_transposed(b, from + n * 32);
                    multiply16(sum[place][2 * n], a, b[0], b[1]);
                    multiply16(sum[place][2 * n + 1], a, b[2], b[3]);
                }
            }
            if (next < tiles) {
#pragma unroll
                for (int round = 0; round < ROUNDS; ++round) {
                    int within = round * 256 + threadIdx.x, task = row * PART + within;
                    if (within < PART && task < SEEN * 8) put(there, ahead[round], task);
                }
            }
        }
    }
    float* to = partial + (((long long)blockIdx.x * gridDim.y + blockIdx.y) * gridDim.z + blockIdx.z) * (9 * 64 * 64);
#pragma unroll
    for (int place = 0; place < 9; ++place) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i)
                to[(place * 64 + rows + lane / 4 + i / 2 * 8) * 64 + columns + n * 8 + lane % 4 * 2 + i % 2] = sum[place][n][i];
        }
    }
}

// One thread an element of the gradient (O, C, 3, 3), neighbours of which are neighbours in C.
extern "C" __global__ void conv_weight_finish(const float* partial, Element* out, int splits, int outputs, int channels) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= 9ll * outputs * channels) return;
    int c = i % channels, o = i / channels % outputs, place = i / channels / outputs;
    int o_blocks = (outputs + 63) / 64, c_blocks = (channels + 63) / 64;
    const long long step = (long long)o_blocks * c_blocks * (9 * 64 * 64);
    const float* p = partial + ((long long)(o / 64) * c_blocks + c / 64) * (9 * 64 * 64) + (place * 64 + o % 64) * 64 + c % 64;
    float total = 0.f;
    for (int s = 0; s < splits; ++s) total += p[s * step];
    out[((long long)o * channels + c) * 9 + place] = (Element)(packed(total, 0.f) & 0xffff);
}
#endif
