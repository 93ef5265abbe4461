// Convolution of pictures with kernels of 3x3 by the products of Hopper's warpgroups (wgmma), for sm_90a.
//
// Compiled with BF16 or F16 and
//   -DHEAD=16, 64 or 128  columns of a block's tile of 256 pixels
//   -DSTEPS=1 or 2        64 channels of the result, from at most 64 of the picture, with all weights in shared memory; or
//                         128 from any number, with weights that come by
//
// Pictures are (B, C, H, W), contiguous, the result as large as the picture, which may be enlarged by 2 while it is read;
// rows of both are whole units of 16 bytes.
//
// In shared memory a picture lies as [8 channels][pixel][channel]: eight neighbouring pixels are 128 bytes, which is what
// wgmma takes as a matrix of 8x8 when nothing is swizzled, and they may begin at any pixel. So a place of the kernel is an
// offset of a descriptor's address, and all nine read the same tile. Rows of a product are channels of the result, its
// columns are runs of eight pixels, one distance apart, for one half of the tile:
//   16   one below the other, in the left or the right half
//   64   two lines; the run that lies between them is computed too, and of no use
//   128  one line
//
// A block's first seven warps bring pictures, 32 channels at a time, the eighth asks for weights, and two warpgroups multiply:
// with STEPS=2 the halves of the channels, with STEPS=1 tiles in turns, so that one writes while the other multiplies.
//
//   kernel            block  grid                           dynamic shared memory, bytes
//   conv_hopper_pack  256    ceil(elements / 256)           0
//   conv_hopper       512    one for each multiprocessor    ROOM

typedef unsigned short Element;

constexpr int ROOM = 231424;                             // all there is, but for the barriers
constexpr int COLUMNS = HEAD;
constexpr int GROUPS = STEPS;                            // of 64 channels of the result
constexpr int ROWS = 256 / COLUMNS;                      // lines of a tile
constexpr int CHUNK = 32;                                // channels of the picture that come at a time
constexpr int LINES = ROWS + 2;                          // with what is around the tile
constexpr int SPAN = COLUMNS == 64 ? 72 : COLUMNS + 2;   // pixels from line to line: whole runs where a product has two lines
constexpr int RUNS = COLUMNS == 64 ? 17 : 16;            // of a product
constexpr int BETWEEN = COLUMNS == 16 ? SPAN : 8;        // pixels from run to run
constexpr int HALF = COLUMNS == 16 ? 8 : 128 / COLUMNS * SPAN;  // pixels to the second half of the tile
constexpr int PITCH = (LINES * SPAN + 7) / 8 * 128 + 32;  // bytes of 8 channels
constexpr int SLOT = CHUNK / 8 * PITCH;                  // bytes of a chunk
constexpr int LINE = 3 * GROUPS * 64 * CHUNK * 2;        // bytes of the weights of a line of the kernel
constexpr int STAGES = GROUPS == 1 ? 6 : 4;              // lines that have room
constexpr int SLOTS = (ROOM - STAGES * LINE) / SLOT;     // chunks that have room
constexpr int BRINGERS = 7;                              // warps

// Of w (O, I, 3, 3): 64 GROUPS outputs, 32 inputs, place, 64 outputs, 16 inputs, 8 inputs, 8 outputs, output, input, with zeros
// where there is nothing. Turned: outputs are inputs, and places run backwards.
extern "C" __global__ void conv_hopper_pack(
    const Element* w, Element* out, int outputs, int inputs, int chunks, int turned, long long count) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= count) return;
    const int piece = (int)(i / 2048), group = piece % GROUPS, place = piece / GROUPS % 9, chunk = piece / GROUPS / 9 % chunks;
    const int row = (piece / GROUPS / 9 / chunks * GROUPS + group) * 64 + i / 8 % 64;
    const int channel = chunk * CHUNK + i / 512 % 4 * 8 + i % 8;
    const int o = turned ? channel : row, k = turned ? row : channel;
    out[i] = o < outputs && k < inputs ? w[((long long)o * inputs + k) * 9 + (turned ? 8 - place : place)] : 0;
}

// ---- products

constexpr unsigned long long WEIGHTS = matrices(1024, 128), PIXELS = matrices(PITCH, BETWEEN * 16);

// A warpgroup's 64 channels of a tile.
struct Sums {
    float of[2][4 * RUNS];

    // A line of the kernel, DEEP times 16 channels.
    template <int DEEP>
    INLINE void add(unsigned weights, unsigned pixels, bool begun) {
        const unsigned long long a = WEIGHTS | weights >> 4, b = PIXELS | pixels >> 4;
        products_begin();
#pragma unroll
        for (int place = 0; place < 3; ++place)
#pragma unroll
            for (int k = 0; k < DEEP; ++k)
#pragma unroll
                for (int half = 0; half < 2; ++half)
                    multiply64(of[half], a + (place * GROUPS * 4096 + k * 2048) / 16,
                               b + place + half * HALF + k * 2 * PITCH / 16, begun || place || k);
        products_commit();
    }
};

// ---- pictures

INLINE unsigned bytes_of(unsigned a, unsigned b, unsigned which) {
    return __byte_perm(a, b, which);
}

INLINE void put16(unsigned char* to, unsigned a, unsigned b, unsigned c, unsigned d) {
    *reinterpret_cast<uint4*>(to) = make_uint4(a, b, c, d);
}

// A share of a chunk: BLOCKS places in a line, each of 8 channels.
template <int BLOCKS>
struct Share {
    static constexpr int ALL = BLOCKS * LINES * (CHUNK / 8);
    int block, line, unit;

    INLINE Share(int number) : block(number / 4 % BLOCKS), line(number / 4 / BLOCKS), unit(number % 4) {}
};

typedef Share<COLUMNS / 8> Run;  // eight pixels of eight channels
typedef Share<2> Edge;           // a pixel on the left or the right of the tile

struct Picture {
    const Element* at;
    int channels, height, width, twice;  // twice: 1 if every pixel stands for 2x2

    INLINE const Element* place(int sample, int channel, int u, int v) const {
        return at + (((long long)sample * channels + channel) * height + (u >> twice)) * width + (v >> twice);
    }

    INLINE bool inside(int u, int v) const {
        return u >= 0 && v >= 0 && u < height << twice && v < width << twice;
    }
};

// What a thread holds on its way to shared memory.
struct Load {
    unsigned run[8][4], edge[4];

    INLINE void fetch(const Picture& picture, int sample, int channel, int top, int left, int number) {
        const long long area = (long long)picture.height * picture.width;
        if (number < Run::ALL) {
            const Run share(number);
            const int u = top + share.line - 1, v = left + share.block * 8, first = channel + share.unit * 8;
            const bool inside = picture.inside(u, v);
            const Element* p = picture.place(sample, first, u, v);
            if (picture.twice) {
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    uint2 line = make_uint2(0, 0);
                    if (inside && first + i < picture.channels) line = *reinterpret_cast<const uint2*>(p + i * area);
                    run[i][0] = bytes_of(line.x, 0, 0x1010), run[i][1] = bytes_of(line.x, 0, 0x3232);
                    run[i][2] = bytes_of(line.y, 0, 0x1010), run[i][3] = bytes_of(line.y, 0, 0x3232);
                }
            } else {
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    uint4 line = make_uint4(0, 0, 0, 0);
                    if (inside && first + i < picture.channels) line = *reinterpret_cast<const uint4*>(p + i * area);
                    run[i][0] = line.x, run[i][1] = line.y, run[i][2] = line.z, run[i][3] = line.w;
                }
            }
        }
        if (number < Edge::ALL) {
            const Edge share(number);
            const int u = top + share.line - 1, v = share.block ? left + COLUMNS : left - 1, first = channel + share.unit * 8;
            const bool inside = picture.inside(u, v);
            const Element* p = picture.place(sample, first, u, v);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const unsigned low = inside && first + 2 * i < picture.channels ? p[2 * i * area] : 0;
                const unsigned high = inside && first + 2 * i + 1 < picture.channels ? p[(2 * i + 1) * area] : 0;
                edge[i] = low | high << 16;
            }
        }
    }

    // Units of channels are two units of 16 bytes apart from each other's banks, and every other block begins with its second
    // pixel: eight threads write to all banks.
    INLINE void put(unsigned char* slot, int number) const {
        if (number < Run::ALL) {
            const Run share(number);
            const int odd = share.block & 1;
            const unsigned first = odd ? 0x7632 : 0x5410, second = odd ? 0x5410 : 0x7632;
            unsigned char* to = slot + share.unit * PITCH + (share.line * SPAN + 1 + share.block * 8) * 16;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                put16(to + (2 * i + odd) * 16, bytes_of(run[0][i], run[1][i], first), bytes_of(run[2][i], run[3][i], first),
                      bytes_of(run[4][i], run[5][i], first), bytes_of(run[6][i], run[7][i], first));
                put16(to + (2 * i + 1 - odd) * 16, bytes_of(run[0][i], run[1][i], second), bytes_of(run[2][i], run[3][i], second),
                      bytes_of(run[4][i], run[5][i], second), bytes_of(run[6][i], run[7][i], second));
            }
        }
        if (number < Edge::ALL) {
            const Edge share(number);
            const int pixel = share.line * SPAN + (share.block ? COLUMNS + 1 : 0);
            put16(slot + share.unit * PITCH + pixel * 16, edge[0], edge[1], edge[2], edge[3]);
        }
    }
};

// ---- results

// Lane q of four gives its number b to lane b and gets that lane's number q.
INLINE void exchange(unsigned (&x)[4], int lane) {
#pragma unroll
    for (int bit = 1; bit < 4; bit *= 2) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i & bit) continue;
            const bool upper = lane & bit;
            const unsigned got = __shfl_xor_sync(0xffffffffu, upper ? x[i] : x[i + bit], bit);
            if (upper) x[i] = got;
            else x[i + bit] = got;
        }
    }
}

// act(sums + bias + add) of a warp's 16 channels, of which a lane has two: numbers lane / 4 and 8 more. Of every four runs of
// eight pixels it has a pair of each, and reads and writes one of them whole.
struct Result {
    static constexpr int PARTS = 8;  // of four runs
    static constexpr int IN_LINE = COLUMNS == 16 ? 1 : COLUMNS / 32;
    const Element* add;
    Element* y;
    int height, width;
    float least, most;
    long long from[2];  // the channels in y
    bool there[2];
    int top, left;
    float shift[2];

    INLINE long long position(int part, int channel, int lane) const {
        const int q = lane % 4;
        const int row = COLUMNS == 16 ? top + 2 * part + q / 2 : top + part / IN_LINE;
        const int column = COLUMNS == 16 ? left + q % 2 * 8 : left + (part % IN_LINE * 4 + q) * 8;
        return there[channel] && row < height && column < width ? from[channel] + row * width + column : -1;
    }

    INLINE void read(uint4 (&others)[2], int part, int lane) const {
#pragma unroll
        for (int channel = 0; channel < 2; ++channel) {
            others[channel] = make_uint4(0, 0, 0, 0);
            const long long at = position(part, channel, lane);
            if (add && at >= 0) others[channel] = *reinterpret_cast<const uint4*>(add + at);
        }
    }

    INLINE float finished(float x) const {
        if (x < least) x = least;
        if (x > most) x = most;
        return x;
    }

    INLINE void write(const Sums& sums, const uint4 (&others)[2], int part, int lane) const {
#pragma unroll
        for (int channel = 0; channel < 2; ++channel) {
            unsigned other[4] = {others[channel].x, others[channel].y, others[channel].z, others[channel].w};
            if (add) exchange(other, lane);
            unsigned out[4];
#pragma unroll
            for (int q = 0; q < 4; ++q) {
                const int half = COLUMNS == 16 ? q % 2 : part / 4;
                const int run = COLUMNS == 16 ? 2 * part + q / 2 : part % 4 / IN_LINE * (SPAN / 8) + part % IN_LINE * 4 + q;
                float lower = sums.of[half][run * 4 + channel * 2] + shift[channel];
                float upper = sums.of[half][run * 4 + channel * 2 + 1] + shift[channel];
                lower += widened((unsigned short)(other[q] & 0xffff));
                upper += widened((unsigned short)(other[q] >> 16));
                out[q] = packed(finished(lower), finished(upper));
            }
            exchange(out, lane);
            const long long at = position(part, channel, lane);
            if (at >= 0) *reinterpret_cast<uint4*>(y + at) = make_uint4(out[0], out[1], out[2], out[3]);
        }
    }
};

// Where a block's tiles are.
struct Tiles {
    int across, down, wide, all;

    INLINE Tiles(int height, int width, int outputs, int batch) {
        across = (width + COLUMNS - 1) / COLUMNS, down = (height + ROWS - 1) / ROWS;
        wide = (outputs + 64 * GROUPS - 1) / (64 * GROUPS);
        all = across * down * wide * batch;
    }

    // Neighbouring numbers see the same pixels.
    INLINE int group(int tile) const { return tile % wide; }
    INLINE int sample(int tile) const { return tile / wide / across / down; }
    INLINE int top(int tile) const { return tile / wide / across % down * ROWS; }
    INLINE int left(int tile) const { return tile / wide % across * COLUMNS; }
};

// Barriers, by their addresses.
struct Barriers {
    unsigned filled, emptied;  // of slots
    unsigned arrived, used;    // of weights

    INLINE Barriers(unsigned from)
        : filled(from), emptied(filled + SLOTS * 8), arrived(emptied + SLOTS * 8), used(arrived + STAGES * 8) {}

    // By one thread. A warp of those that multiply arrives once.
    INLINE void begin() const {
        for (int i = 0; i < SLOTS; ++i) expect(filled + i * 8, BRINGERS * 32), expect(emptied + i * 8, GROUPS * 4);
        for (int i = 0; i < STAGES; ++i) expect(arrived + i * 8, 1), expect(used + i * 8, GROUPS * 4);
        barriers_begin();
    }
};

// ---- what the warps do

INLINE void bring_pictures(const Picture& picture, const Tiles& tiles, const Barriers& barriers, int chunks, int warp, int lane) {
    constexpr int TURNS = (Run::ALL + 31) / 32;  // of warps, in a chunk: they go on with the next one where they left off
    int next = warp, slot = 0, phase = 1;
#pragma unroll 1
    for (int tile = blockIdx.x; tile < tiles.all; tile += gridDim.x) {
        const int sample = tiles.sample(tile), top = tiles.top(tile), left = tiles.left(tile);
#pragma unroll 1
        for (int chunk = 0; chunk < chunks; ++chunk) {
            bool free = false;
#pragma unroll 1
            for (; next < TURNS; next += BRINGERS) {
                Load load;
                load.fetch(picture, sample, chunk * CHUNK, top, left, next * 32 + lane);
                if (!free) await(barriers.emptied + slot * 8, phase);
                free = true;
                load.put(arena + slot * SLOT, next * 32 + lane);
            }
            next -= TURNS;
            if (!free) await(barriers.emptied + slot * 8, phase);
            show();
            arrive(barriers.filled + slot * 8);
            if (++slot == SLOTS) slot = 0, phase ^= 1;
        }
    }
}

// By one thread.
INLINE void bring_weights(unsigned factors, const Element* weights, const Tiles& tiles, const Barriers& barriers, int chunks) {
    const unsigned char* from = reinterpret_cast<const unsigned char*>(weights);
    if (GROUPS == 1) {
        bring(factors, from, chunks * 3 * LINE, barriers.arrived);
        return;
    }
    int stage = 0, phase = 1;
#pragma unroll 1
    for (int tile = blockIdx.x; tile < tiles.all; tile += gridDim.x) {
        const long long first = (long long)tiles.group(tile) * chunks * 3;
#pragma unroll 1
        for (int line = 0; line < chunks * 3; ++line) {
            await(barriers.used + stage * 8, phase);
            bring(factors + stage * LINE, from + (first + line) * LINE, LINE, barriers.arrived + stage * 8);
            if (++stage == STAGES) stage = 0, phase ^= 1;
        }
    }
}

// bias and add may be null; most: the cap. zoom: 1 or 2.
extern "C" __global__ void __launch_bounds__(512, 1) conv_hopper(
    const Element* x, const Element* weights, const Element* bias, const Element* add, Element* y, int channels, int height,
    int width, int zoom, int outputs, int relu, float most, int batch) {
    __shared__ unsigned long long room[2 * SLOTS + 2 * STAGES];
    const Barriers barriers(shared_address(room));
    const int warp = uniform(threadIdx.x / 32), lane = threadIdx.x % 32;
    const int out_h = height * zoom, out_w = width * zoom, chunks = (channels + CHUNK - 1) / CHUNK;
    const Tiles tiles(out_h, out_w, outputs, batch);
    const unsigned factors = shared_address(arena) + SLOTS * SLOT;
    if (threadIdx.x == 0) barriers.begin();
    __syncthreads();

    // Registers of a thread: sums need more than the 128 that each begins with.
    if (warp < 8) {
        fewer_registers<72>();
        if (warp < BRINGERS) bring_pictures(Picture{x, channels, height, width, zoom - 1}, tiles, barriers, chunks, warp, lane);
        else if (lane == 0) bring_weights(factors, weights, tiles, barriers, chunks);
    } else {
        more_registers<184>();
        const int number = warp / 4 - 2;  // of the warpgroup
        const int part = GROUPS == 2 ? number : 0, first_turn = GROUPS == 1 ? number : 0;
        int stage = 0, phase = 0;
        if (GROUPS == 1) await(barriers.arrived, 0);
#pragma unroll 1
        for (int turn = first_turn; (int)blockIdx.x + turn * (int)gridDim.x < tiles.all; turn += GROUPS == 1 ? 2 : 1) {
            const int tile = blockIdx.x + turn * gridDim.x;
            Sums sums;
#pragma unroll 1
            for (int chunk = 0; chunk < chunks; ++chunk) {
                const int filling = turn * chunks + chunk, slot = filling % SLOTS;
                await(barriers.filled + slot * 8, filling / SLOTS);
#pragma unroll 1
                for (int line = 0; line < 3; ++line) {
                    if (GROUPS == 2) await(barriers.arrived + stage * 8, phase);
                    const unsigned a = factors + (GROUPS == 1 ? chunk * 3 + line : stage) * LINE + part * 4096;
                    const unsigned b = shared_address(arena) + slot * SLOT + line * SPAN * 16;
                    const bool begun = chunk > 0 || line > 0;
                    if (channels - chunk * CHUNK > 16) sums.add<2>(a, b, begun);
                    else sums.add<1>(a, b, begun);
                    products_wait<1>();
                    // What the line before this one needed is free.
                    if (lane == 0 && begun) {
                        if (GROUPS == 2) arrive(barriers.used + (stage + STAGES - 1) % STAGES * 8);
                        if (line == 0) arrive(barriers.emptied + (slot + SLOTS - 1) % SLOTS * 8);
                    }
                    if (GROUPS == 2 && ++stage == STAGES) stage = 0, phase ^= 1;
                }
            }
            Result result = {add, y, out_h, out_w, relu ? 0.f : -infinite(), most};
            result.top = tiles.top(tile), result.left = tiles.left(tile);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int channel = (tiles.group(tile) * GROUPS + part) * 64 + warp % 4 * 16 + lane / 4 + 8 * i;
                result.there[i] = channel < outputs;
                result.from[i] = ((long long)tiles.sample(tile) * outputs + channel) * ((long long)out_h * out_w);
                result.shift[i] = bias && channel < outputs ? widened(bias[channel]) : 0.f;
            }
            uint4 others[2][2];  // the next two parts'
            result.read(others[0], 0, lane);
            result.read(others[1], 1, lane);
            products_wait<0>();
            if (lane == 0) {
                if (GROUPS == 2) arrive(barriers.used + (stage + STAGES - 1) % STAGES * 8);
                arrive(barriers.emptied + (turn * chunks + chunks - 1) % SLOTS * 8);
            }
#pragma unroll
            for (int number = 0; number < Result::PARTS; ++number) {
                result.write(sums, others[number % 2], number, lane);
                if (number + 2 < Result::PARTS) result.read(others[number % 2], number + 2, lane);
            }
        }
    }
}
