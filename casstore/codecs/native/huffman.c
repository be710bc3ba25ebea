/* zstd frames of literals alone: Huffman codes without the search for repeats (RFC 8878, sections 3.1.1 and 4).
 *
 * Bytes that are skewed and hold no repeats, such as the exponents of trained weights, gain nothing from a search, and
 * chance matches make them longer. Every zstd decoder reads these frames. Each block of 128 KiB has a table of its own, or
 * that of the block before, whichever is shorter.
 */

#include "huffman.h"
#include "logarithms.h"

#include <stdlib.h>
#include <string.h>

/* One portable build that uses what newer processors have: needs the loader's indirect functions. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__)
#define FAST __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define FAST
#endif

#define BLOCK_SIZE (128 << 10)
#define SYMBOLS 256
#define MAX_BITS 11      /* RFC 8878, 4.2.1: the longest code of a literal */
#define MAX_DIRECT 128   /* 4.2.1.1: more weights than this must be compressed */
#define LEAST_BLOCK 256 /* a shorter one is stored as it is */

/* 4.2.1.2: weights are compressed by FSE with tables of 64 states at most. */
#define STATES_LOG 6
#define STATES (1 << STATES_LOG)
#define WEIGHTS (MAX_BITS + 2)

typedef struct {
    uint8_t bits[SYMBOLS];   /* of the code of each symbol; 0 for one that does not occur */
    uint16_t code[SYMBOLS];
    int last;                /* the largest symbol that occurs */
    int longest;
    uint8_t head[130];       /* the table as a frame holds it */
    int head_size;
} Table;

/* ---- bits, written from the lowest of each byte on, and read from the end */

typedef struct {
    uint64_t held;
    int count;
    uint8_t *to;
} Bits;

static inline void add_bits(Bits *bits, uint64_t value, int count) {
    bits->held |= value << bits->count;
    bits->count += count;
}

/* Takes whole bytes out; writes 8 bytes, of which the first ones count. */
static inline void flush_bits(Bits *bits) {
    memcpy(bits->to, &bits->held, 8);
    bits->to += bits->count >> 3;
    bits->held >>= bits->count & ~7;
    bits->count &= 7;
}

/* Ends a stream with the bit that says where it ends. */
static inline uint8_t *end_bits(Bits *bits) {
    add_bits(bits, 1, 1);
    flush_bits(bits);
    return bits->to + (bits->count > 0);
}

/* ---- code lengths */

/* Counts each of 8 columns by itself, which is faster, too: equal neighbours would wait for one another's sum. */
FAST static void count_columns(const uint8_t *data, size_t size, uint32_t parts[8][SYMBOLS]) {
    size_t at = 0;
    memset(parts, 0, 8 * sizeof parts[0]);
    for (; at + 8 <= size; at += 8) {
        uint64_t word;
        memcpy(&word, data + at, 8);
        parts[0][word & 0xFF]++;
        parts[1][word >> 8 & 0xFF]++;
        parts[2][word >> 16 & 0xFF]++;
        parts[3][word >> 24 & 0xFF]++;
        parts[4][word >> 32 & 0xFF]++;
        parts[5][word >> 40 & 0xFF]++;
        parts[6][word >> 48 & 0xFF]++;
        parts[7][word >> 56]++;
    }
    for (; at < size; at++) parts[at & 7][data[at]]++;
}

static void count_bytes(const uint8_t *data, size_t size, uint32_t *counts) {
    uint32_t parts[8][SYMBOLS];
    count_columns(data, size, parts);
    for (int s = 0; s < SYMBOLS; s++) {
        counts[s] = 0;
        for (int k = 0; k < 8; k++) counts[s] += parts[k][s];
    }
}

/* log2 in 256ths of a bit, at most 1/20 of a bit too small. */
static uint32_t log2_of(uint32_t value) {
    static const uint16_t parts[32] = {
        0, 11, 22, 33, 44, 54, 63, 73, 82, 92, 100, 109, 118, 126, 134, 142,
        150, 157, 165, 172, 179, 186, 193, 200, 207, 213, 220, 226, 232, 238, 244, 250,
    };
    uint32_t whole = 0;
    while (value >> (whole + 1)) whole++;
    return whole << 8 | parts[whole >= 5 ? (value >> (whole - 5)) & 31 : (value << (5 - whole)) & 31];
}

void casstore_column_bits(const uint8_t *data, size_t size, uint64_t *bits) {
    uint32_t parts[8][SYMBOLS];
    count_columns(data, size, parts);
    for (int width = 1; width <= 8; width *= 2) {
        for (int column = 0; column < width; column++, bits++) {
            uint32_t total = 0;
            uint64_t used = 0, product = 0;
            for (int s = 0; s < SYMBOLS; s++) {
                uint32_t count = 0;
                for (int k = column; k < 8; k += width) count += parts[k][s];
                if (count == 0) continue;
                total += count;
                used++;
                product += count * log_of(count);
            }
            *bits = total ? total * log_of(total) - product + MILLER * (used - 1) : 0;
        }
    }
}

/* Whether a code could save a 64th of the bytes: the entropy and the least that a table takes are less than that. */
static int may_shrink(const uint32_t *counts, size_t size, int used) {
    uint64_t bits = 0; /* in 256ths */
    uint32_t whole = log2_of((uint32_t)size);
    for (int s = 0; s < SYMBOLS; s++)
        if (counts[s]) bits += (uint64_t)counts[s] * (whole - log2_of(counts[s]));
    return (bits >> 11) + (size_t)(used > MAX_DIRECT ? 40 : used / 4) < size - (size >> 6);
}

/* Sorts numbers by merging, the smallest first. */
static void sort_numbers(uint64_t *numbers, int count) {
    uint64_t spare[SYMBOLS], *from = numbers, *to = spare;
    for (int width = 1; width < count; width *= 2) {
        for (int begin = 0; begin < count; begin += 2 * width) {
            int middle = begin + width < count ? begin + width : count;
            int end = begin + 2 * width < count ? begin + 2 * width : count;
            int a = begin, b = middle;
            for (int k = begin; k < end; k++) to[k] = b >= end || (a < middle && from[a] <= from[b]) ? from[a++] : from[b++];
        }
        from = to;
        to = from == spare ? numbers : spare;
    }
    if (from != numbers) memcpy(numbers, from, (size_t)count * sizeof numbers[0]);
}

/* The shortest prefix code with at most MAX_BITS bits: Larmore and Hirschberg, "A fast algorithm for optimal
 * length-limited Huffman codes", JACM 37(3), 1990 (package-merge). Needs two symbols or more. */
static void choose_lengths(const uint32_t *counts, uint8_t *bits) {
    uint64_t leaves[SYMBOLS]; /* count and symbol, the rarest first */
    uint64_t costs[2][2 * SYMBOLS];
    uint8_t is_leaf[MAX_BITS][2 * SYMBOLS];
    int number = 0, length = 0, taken;
    for (int s = 0; s < SYMBOLS; s++)
        if (counts[s]) leaves[number++] = (uint64_t)counts[s] << 8 | (uint64_t)s;
    sort_numbers(leaves, number);
    for (int level = 0; level < MAX_BITS; level++) {
        const uint64_t *before = costs[(level + 1) & 1];
        uint64_t *now = costs[level & 1];
        int leaf = 0, pair = 0, pairs = length / 2;
        for (length = 0; leaf < number || pair < pairs; length++) {
            uint64_t packed = pair < pairs ? before[2 * pair] + before[2 * pair + 1] : UINT64_MAX;
            int own = leaf < number && leaves[leaf] >> 8 <= packed;
            now[length] = own ? leaves[leaf] >> 8 : packed;
            is_leaf[level][length] = (uint8_t)own;
            leaf += own;
            pair += !own;
        }
    }
    memset(bits, 0, SYMBOLS);
    taken = 2 * number - 2;
    for (int level = MAX_BITS - 1; level >= 0; level--) {
        int own = 0;
        for (int k = 0; k < taken; k++) own += is_leaf[level][k];
        for (int k = 0; k < own; k++) bits[leaves[k] & 0xFF]++;
        taken = 2 * (taken - own);
    }
}

static void assign_codes(Table *table) {
    int of_length[MAX_BITS + 1] = {0};
    unsigned next[MAX_BITS + 1], first = 0;
    table->longest = 0;
    for (int s = 0; s < SYMBOLS; s++) {
        if (!table->bits[s]) continue;
        table->last = s;
        of_length[table->bits[s]]++;
        if (table->bits[s] > table->longest) table->longest = table->bits[s];
    }
    for (int length = table->longest; length > 0; length--) {
        next[length] = first;
        first = (first + (unsigned)of_length[length]) >> 1;
    }
    for (int s = 0; s < SYMBOLS; s++)
        if (table->bits[s]) table->code[s] = (uint16_t)next[table->bits[s]]++;
}

/* ---- the table, as weights: longest + 1 - bits, 0 for a symbol that does not occur; the last one is implied */

/* Shares the states out among weights by how often they occur, at least one each. */
static void share_states(const int *counts, int total, int *shares) {
    int left = STATES, most = 0;
    for (int w = 0; w < WEIGHTS; w++) {
        shares[w] = counts[w] ? counts[w] * STATES / total : 0;
        if (counts[w] && !shares[w]) shares[w] = 1;
        left -= shares[w];
        if (shares[w] > shares[most]) most = w;
    }
    /* Rounding down leaves some, and rounding up to one takes some: never as many as the most frequent one has. */
    shares[most] += left;
}

/* 4.1.1: how the states are shared out. */
static void add_shares(Bits *bits, const int *shares) {
    int left = STATES + 1, w = 0;
    add_bits(bits, STATES_LOG - 5, 4);
    while (left > 1) {
        /* The value is at most `left`; the smallest ones take a bit less than the others. */
        int value = shares[w] + 1, size = 1, spare;
        while ((1 << size) <= left) size++;
        spare = (1 << size) - 1 - left;
        if (value < spare) add_bits(bits, (uint64_t)value, size - 1);
        else add_bits(bits, (uint64_t)(value < 1 << (size - 1) ? value : value + spare), size);
        flush_bits(bits);
        left -= shares[w];
        if (shares[w++]) continue;
        for (;;) { /* How many more weights have none, in twos of bits: 3 says that it goes on. */
            int more = 0;
            while (more < 3 && !shares[w + more]) more++;
            add_bits(bits, (uint64_t)more, 2);
            flush_bits(bits);
            w += more;
            if (more < 3) break;
        }
    }
}

/* Writes compressed weights, three or more, and returns their size, 0 if that is impossible. */
static int compress_weights(const uint8_t *weights, int number, uint8_t *to) {
    int counts[WEIGHTS] = {0}, shares[WEIGHTS], made[WEIGHTS] = {0};
    uint8_t symbol[STATES], size[STATES], base[STATES], state_for[WEIGHTS][STATES], first[WEIGHTS];
    int state[2], position = 0;
    Bits bits = {0, 0, to};
    uint8_t *end;
    for (int k = 0; k < number; k++) counts[weights[k]]++;
    if (number < 3) return 0;
    for (int w = 0; w < WEIGHTS; w++)
        if (counts[w] == number) return 0;
    share_states(counts, number, shares);
    add_shares(&bits, shares);
    if (bits.count) bits.to++;
    bits = (Bits){0, 0, bits.to};
    for (int w = 0; w < WEIGHTS; w++)
        for (int k = 0; k < shares[w]; k++) {
            symbol[position] = (uint8_t)w;
            position = (position + (STATES >> 1) + (STATES >> 3) + 3) & (STATES - 1);
        }
    for (int at = 0; at < STATES; at++) {
        int w = symbol[at], number_of = shares[w] + made[w], length = 0;
        while ((number_of << length) < STATES) length++;
        if (!made[w]++) first[w] = (uint8_t)at; /* reads the most bits of its states, hence more than none */
        size[at] = (uint8_t)length;
        base[at] = (uint8_t)((number_of << length) - STATES);
        for (int k = 0; k < 1 << length; k++) state_for[w][base[at] + k] = (uint8_t)at;
    }
    /* Two states take turns. A reader stops when a state asks for bits that are not there. */
    state[(number - 1) & 1] = first[weights[number - 1]];
    state[(number - 2) & 1] = first[weights[number - 2]];
    for (int k = number - 3; k >= 0; k--) {
        int next = state[k & 1], at = state_for[weights[k]][next];
        add_bits(&bits, (uint64_t)(next - base[at]), size[at]);
        flush_bits(&bits);
        state[k & 1] = at;
    }
    add_bits(&bits, (uint64_t)state[1], STATES_LOG);
    add_bits(&bits, (uint64_t)state[0], STATES_LOG);
    end = end_bits(&bits);
    return (int)(end - to);
}

static int describe(Table *table) {
    uint8_t weights[SYMBOLS + 1], packed[512];
    int number = table->last, size;
    for (int s = 0; s < number; s++)
        weights[s] = table->bits[s] ? (uint8_t)(table->longest + 1 - table->bits[s]) : 0;
    weights[number] = 0;
    size = compress_weights(weights, number, packed);
    if (1 < size && size < 128 && (number > MAX_DIRECT || size < (number + 1) / 2)) {
        table->head[0] = (uint8_t)size;
        memcpy(table->head + 1, packed, (size_t)size);
        table->head_size = 1 + size;
        return 1;
    }
    if (number > MAX_DIRECT) return 0;
    table->head[0] = (uint8_t)(127 + number);
    for (int s = 0; s < number; s += 2) table->head[1 + s / 2] = (uint8_t)(weights[s] << 4 | weights[s + 1]);
    table->head_size = 1 + (number + 1) / 2;
    return 1;
}

/* ---- blocks */

static size_t size_by(const Table *table, const uint32_t *counts) {
    uint64_t total = 0;
    for (int s = 0; s < SYMBOLS; s++) {
        if (counts[s] && !table->bits[s]) return SIZE_MAX;
        total += (uint64_t)counts[s] * table->bits[s];
    }
    /* Four streams end in a byte of their own, and the sizes of three precede them. */
    return (size_t)(total >> 3) + 4 + 6;
}

/* A stream while it is written, from its end. The bits that are not out yet are the highest `count` of `held`. */
typedef struct {
    uint64_t held;
    unsigned count;
    const uint8_t *from;
    uint8_t *to;
} Stream;

/* A code stands at the top of its item, its length at the bottom: one shift makes room, and one "or" adds it. What the length
 * leaves in the lowest bits is shifted out before it could be written. */
#define SYMBOL(S)                                              \
    do {                                                       \
        uint64_t item = items[*--(S).from];                    \
        (S).held = (S).held >> (item & 63) | item;             \
        (S).count += (unsigned)item & 63;                      \
    } while (0)

#define FLUSH(S)                                               \
    do {                                                       \
        uint64_t value = (S).held >> ((64 - (S).count) & 63);  \
        memcpy((S).to, &value, 8);                             \
        (S).to += (S).count >> 3;                              \
        (S).count &= 7;                                        \
    } while (0)

/* Writes `rounds` times four symbols of both streams: four codes and seven bits left over are 51. */
FAST static void write_pair(const uint64_t *items, size_t rounds, Stream *one, Stream *other) {
    Stream a = *one, b = *other;
    while (rounds--) {
        SYMBOL(a);
        SYMBOL(b);
        SYMBOL(a);
        SYMBOL(b);
        SYMBOL(a);
        SYMBOL(b);
        SYMBOL(a);
        SYMBOL(b);
        FLUSH(a);
        FLUSH(b);
    }
    *one = a;
    *other = b;
}

/* Writes four streams to four parts of `room`, each `step` bytes, and returns their sizes. */
static void write_streams(const Table *table, const uint8_t *data, size_t size, uint8_t *room, size_t step, size_t *sizes) {
    uint64_t items[SYMBOLS];
    Stream streams[4];
    size_t quarter = (size + 3) / 4, rounds = (size - 3 * quarter) / 4;
    for (int s = 0; s < SYMBOLS; s++)
        items[s] = table->bits[s] ? (uint64_t)table->code[s] << (64 - table->bits[s]) | table->bits[s] : 0;
    for (size_t k = 0; k < 4; k++)
        streams[k] = (Stream){0, 0, data + (k < 3 ? (k + 1) * quarter : size), room + k * step};
    /* The first of a stream to be read is the last to be written. */
    write_pair(items, rounds, &streams[0], &streams[1]);
    write_pair(items, rounds, &streams[2], &streams[3]);
    for (size_t k = 0; k < 4; k++) {
        Stream *stream = &streams[k];
        while (stream->from > data + k * quarter) {
            SYMBOL(*stream);
            FLUSH(*stream);
        }
        /* Ends with the bit that says where it ends. */
        stream->held = stream->held >> 1 | (uint64_t)1 << 63;
        stream->count++;
        FLUSH(*stream);
        sizes[k] = (size_t)(stream->to + (stream->count > 0) - (room + k * step));
    }
}

static void put_number(uint8_t *to, uint64_t value, int bytes) {
    for (int k = 0; k < bytes; k++) to[k] = (uint8_t)(value >> (8 * k));
}

static size_t raw_block(const uint8_t *data, size_t size, int last, uint8_t *to) {
    put_number(to, (uint64_t)last | size << 3, 3);
    if (data != NULL) memcpy(to + 3, data, size);
    return 3 + size;
}

/* What is known from block to block. */
typedef struct {
    Table tables[2];
    int current; /* the table that a reader has, -1 before the first */
} Coder;

/* Writes a block and returns its size, which is an estimate, a few bytes too large, where nothing is written (`room` is NULL). */
static size_t write_block(Coder *coder, const uint8_t *data, size_t size, int last, uint8_t *to, uint8_t *room, size_t step) {
    uint32_t counts[SYMBOLS];
    int used = 0, is_new = 1, made;
    size_t best, sizes[4], total;
    Table *table = &coder->tables[coder->current < 0 ? 0 : 1 - coder->current];
    const uint8_t *plain = room == NULL ? NULL : data;
    uint8_t *at;
    if (size < LEAST_BLOCK) return raw_block(plain, size, last, to);
    count_bytes(data, size, counts);
    for (int s = 0; s < SYMBOLS; s++) used += counts[s] != 0;
    if (used == 1) {
        put_number(to, (uint64_t)last | 1 << 1 | size << 3, 3);
        to[3] = data[0];
        return 4;
    }
    if (!may_shrink(counts, size, used)) return raw_block(plain, size, last, to);
    choose_lengths(counts, table->bits);
    assign_codes(table);
    made = describe(table);
    best = made ? size_by(table, counts) + (size_t)table->head_size : SIZE_MAX;
    if (coder->current >= 0) {
        size_t again = size_by(&coder->tables[coder->current], counts);
        if (again <= best) {
            best = again;
            is_new = 0;
        }
    }
    if (best >= size - 16) return raw_block(plain, size, last, to);
    if (is_new) coder->current = (int)(table - coder->tables);
    else table = &coder->tables[coder->current];
    if (room == NULL) return best + 9;
    write_streams(table, data, size, room, step, sizes);
    at = to + 3 + 5;
    if (is_new) {
        memcpy(at, table->head, (size_t)table->head_size);
        at += table->head_size;
    }
    for (int k = 0; k < 3; k++) put_number(at + 2 * k, sizes[k], 2);
    at += 6;
    for (int k = 0; k < 4; k++) {
        memcpy(at, room + (size_t)k * step, sizes[k]);
        at += sizes[k];
    }
    total = (size_t)(at - to) - 8;
    /* 3.1.1.3.1: four streams, sizes of 18 bits; a table of its own or the one before. */
    put_number(to + 3, (uint64_t)(is_new ? 2 : 3) | 3 << 2 | (uint64_t)size << 4 | (uint64_t)total << 22, 5);
    *at++ = 0; /* no sequences */
    put_number(to, (uint64_t)last | 2 << 1 | (uint64_t)(at - to - 3) << 3, 3);
    return (size_t)(at - to);
}

size_t casstore_literals_room(size_t size) {
    /* A frame's head, and each block as it is. */
    return 16 + size + (size / BLOCK_SIZE + 1) * 16;
}

size_t casstore_literals(const uint8_t *data, size_t size, uint8_t *to) {
    /* Of 32 KiB at 11 bits each, and what is written beyond the end. */
    size_t step = (BLOCK_SIZE / 4 * MAX_BITS + 7) / 8 + 16, total;
    uint8_t spare[32], *room = NULL;
    Coder coder;
    int bytes = size < 256 ? 1 : size < 65536 + 256 ? 2 : 4;
    coder.current = -1;
    if (size == 0 || size > UINT32_MAX) return 0;
    if (to != NULL) {
        room = malloc(4 * step);
        if (room == NULL) return 0;
        put_number(to, 0xFD2FB528u, 4);
        to[4] = (uint8_t)((bytes == 4 ? 2 : bytes - 1) << 6 | 1 << 5); /* one segment, which has this size: */
        put_number(to + 5, bytes == 2 ? size - 256 : size, bytes);
    }
    total = 5 + (size_t)bytes;
    for (size_t at = 0; at < size; at += BLOCK_SIZE) {
        size_t length = size - at < BLOCK_SIZE ? size - at : BLOCK_SIZE;
        total += write_block(&coder, data + at, length, at + length == size, to == NULL ? spare : to + total, room, step);
    }
    free(room);
    return total < size ? total : 0;
}

static size_t slot(const uint8_t *data) {
    uint64_t word;
    memcpy(&word, data, 8);
    return (size_t)(word * 0x9E3779B97F4A7C15u >> 53);
}

size_t casstore_repeats(const uint8_t *data, size_t size) {
    uint32_t seen[2048];
    size_t found = 0;
    memset(seen, 0, sizeof seen);
    /* Every third position is looked up, and every fourth remembered: of a long repeat, whatever its distance, a twelfth meets. */
    for (size_t begin = 0; begin + 20 <= size; begin += 12) {
        for (size_t at = begin; at < begin + 12; at += 3) {
            size_t before = seen[slot(data + at)];
            found += before < at && memcmp(data + before, data + at, 8) == 0;
        }
        for (size_t at = begin; at < begin + 12; at += 4) seen[slot(data + at)] = (uint32_t)at;
    }
    return 12 * found;
}
