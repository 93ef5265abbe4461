// Convolution of pictures with kernels of 3x3 on tensor cores: forward, the gradient of the picture (a convolution of
// the result's gradient with the turned kernel), and the gradient of the kernel.
//
// Compiled once for each of these, with BF16 or F16:
//   -DHEAD=64   places of the kernel are 1 apart: 64 channels of 10x34 pixels are in shared memory at a time
//   -DHEAD=16   they are 2 apart: 16 channels of 17x65 pixels
//   -DSTEPS=n   conv_forward's blocks make 8 n channels of the result: 1, 8 or 16; without it conv_weight is compiled
//
// Pictures are (B, C, H, W), contiguous. A pixel of the padded picture at (u, v) is the source's at (u / zoom, v / zoom)
// if zoom > 0, so that a larger picture is never written down; if zoom < 0 it is the source's at (u / -zoom, v / -zoom)
// where both are whole, and 0 elsewhere, which is the gradient of a stride.
//
// In shared memory a pixel's channels are neighbours, an odd number of 16-byte units for each pixel: the rows of an 8x8
// matrix are pixels, so that a place of the kernel is an offset, and they meet eight different groups of banks. Where rows
// of the picture are whole units (`fast`) eight pixels of eight channels are read at once and turned in registers, and
// what comes next is read while there is something to multiply.
//
//   kernel         block  grid                                    dynamic shared memory, bytes
//   conv_pack      256    ceil(chunks * 9 * wide * HEAD / 256)    0
//   conv_forward   256    (tiles, wide / (8 STEPS), B)            PIXELS * ROW * (chunks > 1 ? 2 : 1) + 3 * 8 STEPS * ROW, at least 40960
//   conv_resident  256    at most tiles * B: each takes several   9 * 8 STEPS * ROW + 2 * PIXELS * ROW + 40960 (STEPS <= 8)
//   conv_weight    256    (splits, ceil(O / 64), ceil(C / 64))    2 ROOM
// with chunks = ceil(C / HEAD), wide = O rounded up to 8 STEPS, tiles = ceil(OH / 8) ceil(OW / 32), conv_weight's of DEPTH rows.
// conv_resident is for one chunk, one block of channels, fast pictures and HEAD=64.

#define STRIDE (HEAD == 64 ? 1 : 2)

typedef unsigned short Element;

constexpr int SPAN = 31 * STRIDE + 3;  // pixels of a row that 32 results see

INLINE void commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most one group of this thread's copies is under way.
INLINE void all_but_one() {
    asm volatile("cp.async.wait_group 1;" ::: "memory");
}

INLINE unsigned bytes_of(unsigned a, unsigned b, unsigned which) {
    return __byte_perm(a, b, which);
}

INLINE void put16(unsigned char* to, unsigned a, unsigned b, unsigned c, unsigned d) {
    *reinterpret_cast<uint4*>(to) = make_uint4(a, b, c, d);
}

struct Picture {
    const Element* at;  // the first pixel of the first sample
    int channels, height, width, zoom, before;

    // Where the source pixel of (u, v) is, or -1 for a zero.
    INLINE int place(int u, int v) const {
        if (u < 0 || v < 0) return -1;
        if (zoom == 1) return u < height && v < width ? u * width + v : -1;
        int z = zoom > 0 ? zoom : -zoom, y = u / z, x = v / z;
        if (y >= height || x >= width || (zoom < 0 && (y * z != u || x * z != v))) return -1;
        return y * width + x;
    }

    INLINE const Element* sample(int number) const {
        return at + (long long)number * channels * height * width;
    }

    // Eight channels of a pixel.
    INLINE void read(unsigned (&r)[4], const Element* sample, int channel, int place) const {
        const long long area = (long long)height * width;
        const Element* p = sample + channel * area + place;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            unsigned low = place >= 0 && channel + 2 * i < channels ? p[2 * i * area] : 0;
            unsigned high = place >= 0 && channel + 2 * i + 1 < channels ? p[(2 * i + 1) * area] : 0;
            r[i] = low | high << 16;
        }
    }
};

// What a block sees of a picture for TALL rows of its results: TALL rows of SPAN pixels with UNITS times eight channels, PITCH bytes apart.
template <int TALL, int UNITS, int PITCH>
struct Window {
    static constexpr int PIXELS = TALL * SPAN;
    static constexpr int WHOLE = TALL * 4 * UNITS;             // tasks of 8 pixels, which begin where results do
    static constexpr int TASKS = WHOLE + TALL * 2 * UNITS;     // and of single pixels beside them
    const Picture& picture;
    const Element* sample;
    int top, left;  // of the results, in pixels of the padded picture

    // Fast pictures only: task `task` to registers.
    INLINE void fetch(unsigned (&r)[8][4], int channel, int task) const {
        if (task < WHOLE) {
            const int u = top - picture.before + task / (4 * UNITS), v = left + task / UNITS % 4 * 8;
            const int first = channel + task % UNITS * 8, place = picture.place(u, v);
            const long long area = (long long)picture.height * picture.width;
            const Element* p = sample + first * area + place;
            if (picture.zoom == 1) {
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    uint4 line = make_uint4(0, 0, 0, 0);
                    if (place >= 0 && first + i < picture.channels) line = *reinterpret_cast<const uint4*>(p + i * area);
                    r[i][0] = line.x, r[i][1] = line.y, r[i][2] = line.z, r[i][3] = line.w;
                }
            } else {
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    uint2 line = make_uint2(0, 0);
                    if (place >= 0 && first + i < picture.channels) line = *reinterpret_cast<const uint2*>(p + i * area);
                    r[i][0] = bytes_of(line.x, 0, 0x1010), r[i][1] = bytes_of(line.x, 0, 0x3232);
                    r[i][2] = bytes_of(line.y, 0, 0x1010), r[i][3] = bytes_of(line.y, 0, 0x3232);
                }
            }
        } else {
            const int beside = (task - WHOLE) / UNITS, column = beside % 2, row = beside / 2;
            const int j = column < picture.before ? column : column + 32;
            picture.read(r[0], sample, channel + task % UNITS * 8, picture.place(top - picture.before + row, left - picture.before + j));
        }
    }

    INLINE void put(unsigned char* room, const unsigned (&r)[8][4], int task) const {
        if (task < WHOLE) {
            const int row = task / (4 * UNITS), j = task / UNITS % 4 * 8 + picture.before;
            unsigned char* to = room + (row * SPAN + j) * PITCH + task % UNITS * 16;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                put16(to + 2 * i * PITCH, bytes_of(r[0][i], r[1][i], 0x5410), bytes_of(r[2][i], r[3][i], 0x5410),
                      bytes_of(r[4][i], r[5][i], 0x5410), bytes_of(r[6][i], r[7][i], 0x5410));
                put16(to + (2 * i + 1) * PITCH, bytes_of(r[0][i], r[1][i], 0x7632), bytes_of(r[2][i], r[3][i], 0x7632),
                      bytes_of(r[4][i], r[5][i], 0x7632), bytes_of(r[6][i], r[7][i], 0x7632));
            }
        } else {
            const int beside = (task - WHOLE) / UNITS, column = beside % 2, row = beside / 2;
            const int j = column < picture.before ? column : column + 32;
            put16(room + (row * SPAN + j) * PITCH + task % UNITS * 16, r[0][0], r[0][1], r[0][2], r[0][3]);
        }
    }

    // All of it, by all threads.
    INLINE void load(unsigned char* room, int channel, bool fast) const {
        if (fast) {
#pragma unroll 1
            for (int task = threadIdx.x; task < TASKS; task += 256) {
                unsigned r[8][4];
                fetch(r, channel, task);
                put(room, r, task);
            }
        } else {
#pragma unroll 1
            for (int task = threadIdx.x; task < PIXELS * UNITS; task += 256) {
                const int pixel = task % PIXELS, unit = task / PIXELS;
                unsigned r[4];
                const int place = picture.place(top - picture.before + pixel / SPAN, left - picture.before + pixel % SPAN);
                picture.read(r, sample, channel + unit * 8, place);
                put16(room + pixel * PITCH + unit * 16, r[0], r[1], r[2], r[3]);
            }
        }
    }
};

// A thread's task in part `part` of `parts`: another warp's turn each time.
INLINE int turn(int part, int tasks, int parts) {
    const int each = (tasks + parts - 1) / parts, mine = (threadIdx.x + 256 - part * each % 256) % 256;
    const int task = part * each + mine;
    return mine < each && task < tasks ? task : tasks;
}

#ifdef STEPS
constexpr int CHUNK = HEAD;
constexpr int TALL = 7 * STRIDE + 3;
constexpr int PIXELS = TALL * SPAN;
constexpr int ROW = CHUNK * 2 + 16;                     // bytes of a pixel's channels
constexpr int UNITS = CHUNK / 8;                        // of 16 bytes
constexpr int COLUMNS = 8 * STEPS;                      // channels of the result
constexpr int ACROSS = COLUMNS > 64 ? 2 : 1;            // warps side by side
constexpr int GROUPS = (COLUMNS / ACROSS) / 8;          // of eight channels, of a warp
constexpr int STRIPS = 16 / (8 / ACROSS);               // of 16 pixels, of a warp
constexpr int STAGE = COLUMNS * ROW;                    // bytes of the weights of a place

typedef Window<TALL, UNITS, ROW> View;

// w (O, I, 3, 3) as chunk, place, row, channel with zeros where there is nothing. Turned: rows are inputs, channels
// outputs, and places run backwards.
extern "C" __global__ void conv_pack(const Element* w, Element* out, int outputs, int inputs, int wide, int turned, long long count) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= count) return;
    int c = i % CHUNK, row = i / CHUNK % wide, place = i / CHUNK / wide % 9, channel = (int)(i / CHUNK / wide / 9) * CHUNK + c;
    int o = turned ? channel : row, k = turned ? row : channel;
    out[i] = o < outputs && k < inputs ? w[((long long)o * inputs + k) * 9 + (turned ? 8 - place : place)] : 0;
}

INLINE void fetch_weights(unsigned to, const Element* from) {
#pragma unroll 1
    for (int i = threadIdx.x; i < COLUMNS * UNITS; i += 256)
        copy16(to + i / UNITS * ROW + i % UNITS * 16, from + (long long)i * 8, true);
}

struct Sums {
    float of[STRIPS][GROUPS][4];

    INLINE void clear() {
#pragma unroll
        for (int m = 0; m < STRIPS; ++m)
#pragma unroll
            for (int n = 0; n < GROUPS; ++n) of[m][n][0] = of[m][n][1] = of[m][n][2] = of[m][n][3] = 0.f;
    }

    // A place of the kernel: strips from number `strip` on, channels from `column` on.
    INLINE void add(unsigned input, unsigned weights, int place, int depth, int strip, int column, int lane) {
        const unsigned b_at = weights + (GROUPS == 1 ? (column + (lane & 7)) * ROW : (column + (lane & 7) + (lane >> 4) * 8) * ROW) + (lane >> 3 & 1) * 16;
        const unsigned a_at = input + (place / 3 * SPAN + (lane & 15) * STRIDE + place % 3) * ROW + (lane >> 4) * 16;
        if (depth == CHUNK) {
            chain<CHUNK / 16>(a_at, b_at, strip);
        } else {
#pragma unroll 1
            for (int k = 0; k * 16 < depth; ++k) chain<1>(a_at + k * 32, b_at + k * 32, strip);
        }
    }

    // DEEP times 16 channels. What is multiplied next is on its way from shared memory meanwhile.
    template <int DEEP>
    INLINE void chain(unsigned a_at, unsigned b_at, int strip) {
        constexpr int PAIRS = GROUPS == 1 ? 1 : GROUPS / 2;
        unsigned a[2][STRIPS][4], b[2][4];
        auto load_a = [&](int k) {
#pragma unroll
            for (int m = 0; m < STRIPS; ++m) {
                const int number = strip + m;
                load4(a[k % 2][m], a_at + (number / 2 * STRIDE * SPAN + number % 2 * 16 * STRIDE) * ROW + k * 32);
            }
        };
        auto load_b = [&](int step) {
            if (GROUPS == 1) load2(b[step % 2], b_at + step * 32);
            else load4(b[step % 2], b_at + step % PAIRS * 16 * ROW + step / PAIRS * 32);
        };
        load_a(0);
        load_b(0);
#pragma unroll
        for (int k = 0; k < DEEP; ++k) {
#pragma unroll
            for (int n = 0; n < PAIRS; ++n) {
                const int step = k * PAIRS + n;
                if (n == 0 && k + 1 < DEEP) load_a(k + 1);
                if (step + 1 < DEEP * PAIRS) load_b(step + 1);
#pragma unroll
                for (int m = 0; m < STRIPS; ++m) {
                    multiply16(of[m][GROUPS == 1 ? 0 : 2 * n], a[k % 2][m], b[step % 2][0], b[step % 2][1]);
                    if (GROUPS > 1) multiply16(of[m][GROUPS == 1 ? 0 : 2 * n + 1], a[k % 2][m], b[step % 2][2], b[step % 2][3]);
                }
            }
        }
    }
};

union Eight {
    uint4 whole;
    Element each[8];
};

// What happens to sums, and where they go.
struct Result {
    const Element *bias, *add;
    Element* y;
    int outputs, out_h, out_w, relu, wide_rows;
    float most;

    static constexpr int TURNS = (GROUPS * 16 + 31) / 32;  // a strip's tasks of 8 pixels of a channel, for a lane

    // The position of a lane's task, or -1.
    INLINE long long position(int sample, int row, int left, int first, int task) const {
        const int channel = first + task / 2, pixel = left + task % 2 * 8;
        if (task >= GROUPS * 16 || channel >= outputs || row >= out_h || pixel >= out_w) return -1;
        return ((long long)sample * outputs + channel) * ((long long)out_h * out_w) + (long long)row * out_w + pixel;
    }

    INLINE void read(Eight& other, long long at, int left, int task) const {
        other.whole = make_uint4(0, 0, 0, 0);
        if (at < 0 || !add) return;
        if (wide_rows) {
            other.whole = *reinterpret_cast<const uint4*>(add + at);
        } else {
            const int count = min(8, out_w - left - task % 2 * 8);
#pragma unroll
            for (int i = 0; i < 8; ++i)
                if (i < count) other.each[i] = add[at + i];
        }
    }

    // A strip by way of the warp's shared memory, so that a lane has eight neighbouring pixels of a channel.
    INLINE void write(const float (&sums)[GROUPS][4], const Eight (&others)[TURNS], float* room, int sample, int row, int left, int first, int lane) const {
        constexpr int PITCH = 20;  // floats of a channel's 16 pixels
        __syncwarp();
#pragma unroll
        for (int n = 0; n < GROUPS; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) room[(n * 8 + lane % 4 * 2 + i % 2) * PITCH + lane / 4 + i / 2 * 8] = sums[n][i];
        __syncwarp();
#pragma unroll
        for (int t = 0; t < TURNS; ++t) {
            const int task = t * 32 + lane;
            const long long at = position(sample, row, left, first, task);
            if (at < 0) continue;
            const float shift = bias ? widened(bias[first + task / 2]) : 0.f;
            const float* from = room + task / 2 * PITCH + task % 2 * 8;
            Eight out;
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                float value = from[i] + shift;
                if (add) value += widened(others[t].each[i]);
                if (relu && value < 0.f) value = 0.f;
                if (value > most) value = most;
                out.each[i] = (Element)(packed(value, 0.f) & 0xffff);
            }
            if (wide_rows) {
                *reinterpret_cast<uint4*>(y + at) = out.whole;
            } else {
                const int count = min(8, out_w - left - task % 2 * 8);
#pragma unroll
                for (int i = 0; i < 8; ++i)
                    if (i < count) y[at + i] = out.each[i];
            }
        }
    }
};

// act(conv + bias + add); bias and add may be null. most: the cap.
extern "C" __global__ void __launch_bounds__(256, COLUMNS <= 64 ? 2 : 1) conv_forward(
    const Element* x, const Element* weights, const Element* bias, const Element* add, Element* y, int channels, int height, int width,
    int zoom, int before, int outputs, int out_h, int out_w, int relu, float most, int wide_rows, int fast, int batch) {
    const int warp = uniform(threadIdx.x / 32), lane = threadIdx.x % 32;
    const int across = (out_w + 31) / 32;
    const int top = blockIdx.x / across * 8, left = blockIdx.x % across * 32;
    const int first = blockIdx.y * COLUMNS;
    const int wide = gridDim.y * COLUMNS;
    const int chunks = (channels + CHUNK - 1) / CHUNK;
    const Picture picture = {x, channels, height, width, zoom, before};
    const View view = {picture, picture.sample(blockIdx.z), top * STRIDE, left * STRIDE};
    const unsigned input = shared_address(arena);
    const unsigned factors = input + PIXELS * ROW * (chunks > 1 ? 2 : 1);

    auto weights_of = [&](int stage) {
        if (stage < chunks * 9) fetch_weights(factors + stage % 3 * STAGE, weights + ((long long)stage * wide + first) * CHUNK);
        commit();
    };
    weights_of(0);
    weights_of(1);
    view.load(arena, 0, fast);
    const int strip = warp / ACROSS * STRIPS, column = warp % ACROSS * (GROUPS * 8);
    Sums sums;
    sums.clear();
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
        const int depth = min(CHUNK, channels - chunk * CHUNK);
        const bool more = chunk + 1 < chunks;
        unsigned char* there = arena + (chunk + 1) % 2 * PIXELS * ROW;
#pragma unroll 1
        for (int place = 0; place < 9; ++place) {
            const int stage = chunk * 9 + place;
            all_but_one();
            __syncthreads();
            weights_of(stage + 2);
            unsigned next[8][4];
            const int task = more && fast ? turn(place, View::TASKS, 9) : View::TASKS;
            if (task < View::TASKS) view.fetch(next, (chunk + 1) * CHUNK, task);
            sums.add(input + chunk % 2 * PIXELS * ROW, factors + stage % 3 * STAGE, place, depth, strip, column, lane);
            if (task < View::TASKS) view.put(there, next, task);
        }
        if (more && !fast) view.load(there, (chunk + 1) * CHUNK, false);
    }
    __syncthreads();
    const Result result = {bias, add, y, outputs, out_h, out_w, relu, wide_rows, most};
    float* room = reinterpret_cast<float*>(arena) + warp * (GROUPS * 8 * 20);
#pragma unroll
    for (int m = 0; m < STRIPS; ++m) {
        const int row = top + (strip + m) / 2, from = left + (strip + m) % 2 * 16;
        Eight others[Result::TURNS];
#pragma unroll
        for (int t = 0; t < Result::TURNS; ++t)
            result.read(others[t], result.position(blockIdx.z, row, from, first + column, t * 32 + lane), from, t * 32 + lane);
        result.write(sums.of[m], others, room, blockIdx.z, row, from, first + column, lane);
    }
}

#if HEAD == 64 && STEPS <= 8
// The same with all weights in shared memory, tile after tile.
extern "C" __global__ void __launch_bounds__(256, 1) conv_resident(
    const Element* x, const Element* weights, const Element* bias, const Element* add, Element* y, int channels, int height, int width,
    int zoom, int before, int outputs, int out_h, int out_w, int relu, float most, int wide_rows, int fast, int batch) {
    const int warp = uniform(threadIdx.x / 32), lane = threadIdx.x % 32;
    const int across = (out_w + 31) / 32, tiles = across * ((out_h + 7) / 8), all = tiles * batch;
    const Picture picture = {x, channels, height, width, zoom, before};
    const unsigned factors = shared_address(arena);
    unsigned char* inputs = arena + 9 * STAGE;
    float* room = reinterpret_cast<float*>(inputs + 2 * PIXELS * ROW) + warp * (GROUPS * 8 * 20);
    const Result result = {bias, add, y, outputs, out_h, out_w, relu, wide_rows, most};
    auto view_of = [&](int tile) {
        const int within = tile % tiles;
        return View{picture, picture.sample(tile / tiles), within / across * 8, within % across * 32};
    };
    for (int place = 0; place < 9; ++place) fetch_weights(factors + place * STAGE, weights + (long long)place * COLUMNS * CHUNK);
    commit();
    int tile = blockIdx.x;
    view_of(tile).load(inputs, 0, true);
    copies_done();
    const int strip = warp * STRIPS;
#pragma unroll 1
    for (int number = 0; tile < all; ++number, tile += gridDim.x) {
        __syncthreads();
        unsigned char *here = inputs + number % 2 * PIXELS * ROW, *there = inputs + (number + 1) % 2 * PIXELS * ROW;
        const int following = tile + gridDim.x, within = tile % tiles, sample = tile / tiles;
        const bool more = following < all;
        const View view = view_of(more ? following : tile);
        const int top = within / across * 8, left = within % across * 32;
        Eight others[STRIPS][Result::TURNS];
#pragma unroll
        for (int m = 0; m < STRIPS; ++m) {
            const int row = top + (strip + m) / 2, from = left + (strip + m) % 2 * 16;
#pragma unroll
            for (int t = 0; t < Result::TURNS; ++t) result.read(others[m][t], result.position(sample, row, from, 0, t * 32 + lane), from, t * 32 + lane);
        }
        Sums sums;
        sums.clear();
#pragma unroll 1
        for (int place = 0; place < 9; ++place) {
            unsigned next[8][4];
            const int task = more ? turn(place, View::TASKS, 9) : View::TASKS;
            if (task < View::TASKS) view.fetch(next, 0, task);
            sums.add(shared_address(here), factors + place * STAGE, place, channels, strip, 0, lane);
            if (task < View::TASKS) view.put(there, next, task);
        }
#pragma unroll
        for (int m = 0; m < STRIPS; ++m) {
            const int row = top + (strip + m) / 2, from = left + (strip + m) % 2 * 16;
            result.write(sums.of[m], others[m], room, sample, row, from, 0, lane);
        }
    }
}
#endif
#else

// ---- the gradient of the kernel
//
// A block takes 64 outputs and 64 inputs through its share of the tiles, which are DEPTH rows of 32 pixels of the result, with all
// sums in registers: a warp 16 outputs and 32 inputs, for all nine places. Every split leaves its sums in `partial`
// (splits, O blocks, C blocks, 9, 64, 64) in f32; conv_weight_finish adds them up in order.

constexpr int DEPTH = STRIDE == 1 ? 8 : 2;
constexpr int TALL = (DEPTH - 1) * STRIDE + 3;
constexpr int PIXEL = 64 * 2 + 16;                     // bytes of a pixel's 64 channels
constexpr int LINE = DEPTH * 64 + 16;                  // bytes of an output's gradient
constexpr int ROOM = TALL * SPAN * PIXEL + 64 * LINE;  // of one tile; there are two

typedef Window<TALL, 8, PIXEL> View;

extern "C" __global__ void __launch_bounds__(256, 1) conv_weight(
    const Element* x, const Element* g, float* partial, int channels, int height, int width, int zoom, int before, int outputs, int out_h, int out_w,
    int batch, int wide_rows, int fast) {
    const int warp = uniform(threadIdx.x / 32), lane = threadIdx.x % 32;
    const int first = blockIdx.y * 64, base = blockIdx.z * 64;
    const int across = (out_w + 31) / 32, tiles = across * ((out_h + DEPTH - 1) / DEPTH), all = tiles * batch;
    const long long area = (long long)out_h * out_w;
    const Picture picture = {x, channels, height, width, zoom, before};

    auto view_of = [&](int tile) {
        const int within = tile % tiles;
        return View{picture, picture.sample(tile / tiles), within / across * DEPTH * STRIDE, within % across * 32 * STRIDE};
    };
    auto gradients = [&](unsigned char* room, int tile) {
        const int sample = tile / tiles, within = tile % tiles;
        const int top = within / across * DEPTH, left = within % across * 32;
#pragma unroll 1
        for (int task = threadIdx.x; task < 64 * DEPTH * 4; task += 256) {
            const int quarter = task % 4, row = task / 4 % DEPTH, output = task / 4 / DEPTH;
            const int channel = first + output, line = top + row, pixel = left + quarter * 8;
            const Element* p = g + ((long long)sample * outputs + channel) * area + (long long)line * out_w + pixel;
            unsigned char* to = room + TALL * SPAN * PIXEL + output * LINE + row * 64 + quarter * 16;
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
    if (tile < all) {
        gradients(arena, tile);
        view_of(tile).load(arena, base, fast);
    }
    const int rows = warp % 4 * 16, columns = warp / 4 * 32;
#pragma unroll 1
    for (int number = 0; tile < all; ++number, tile += gridDim.x) {
        copies_done();
        __syncthreads();
        unsigned char *here = arena + number % 2 * ROOM, *there = arena + (number + 1) % 2 * ROOM;
        const int following = tile + gridDim.x;
        const bool more = following < all;
        const View view = view_of(more ? following : tile);
        if (more) gradients(there, following);
        const unsigned a_at = shared_address(here) + TALL * SPAN * PIXEL + (rows + (lane & 15)) * LINE + (lane >> 4) * 16;
        const unsigned b_at = shared_address(here) + (lane & 15) * STRIDE * PIXEL + (columns + (lane >> 4) * 8) * 2;
#pragma unroll 1
        for (int strip = 0; strip < 2 * DEPTH; ++strip) {
            unsigned next[8][4];
            const int task = more && fast ? turn(strip, View::TASKS, 2 * DEPTH) : View::TASKS;
            if (task < View::TASKS) view.fetch(next, base, task);
            unsigned a[4];
            load4(a, a_at + strip * 32);
            const unsigned strip_at = b_at + (strip / 2 * STRIDE * SPAN + strip % 2 * 16 * STRIDE) * PIXEL;
#pragma unroll
            for (int place = 0; place < 9; ++place) {
#pragma unroll
                for (int n = 0; n < 2; ++n) {
                    unsigned b[4];
                    load4_transposed(b, strip_at + (place / 3 * SPAN + place % 3) * PIXEL + n * 32);
                    multiply16(sum[place][2 * n], a, b[0], b[1]);
                    multiply16(sum[place][2 * n + 1], a, b[2], b[3]);
                }
            }
            if (task < View::TASKS) view.put(there, next, task);
        }
        if (more && !fast) view.load(there, base, false);
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
