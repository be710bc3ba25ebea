/* Binary logarithms as integers, in 65536ths, so that every machine comes to the same numbers; logarithms.py does the same. */

#ifndef CASSTORE_LOGARITHMS_H
#define CASSTORE_LOGARITHMS_H

#include <stddef.h>
#include <stdint.h>

#define LOG_BITS 16
#define PARTS_BITS 6

/* log2(1 + k / 64) in 65536ths: between them lines are at most 1/20000 too low. */
static const uint32_t log_parts[(1 << PARTS_BITS) + 1] = {
    0, 1466, 2909, 4331, 5732, 7112, 8473, 9814, 11136, 12440, 13727, 14996, 16248,
    17484, 18704, 19909, 21098, 22272, 23433, 24579, 25711, 26830, 27936, 29029, 30109, 31178,
    32234, 33279, 34312, 35334, 36346, 37346, 38336, 39316, 40286, 41246, 42196, 43137, 44068,
    44990, 45904, 46809, 47705, 48593, 49472, 50344, 51207, 52063, 52911, 53751, 54584, 55410,
    56229, 57040, 57845, 58643, 59434, 60219, 60997, 61769, 62534, 63294, 64047, 64794, 65536,
};

/* Half of 1 / ln 2 in 65536ths: what a value more among those seen adds to the entropy, times the count (Miller 1955). */
#define MILLER 47274

/* log2 of a number, which is not 0, in 65536ths. */
static inline uint64_t log_of(uint64_t value) {
    unsigned whole = 0;
    uint64_t rest = value, mantissa, fraction;
    size_t part;
    for (unsigned step = 32; step; step >>= 1)
        if (rest >> step) {
            rest >>= step;
            whole += step;
        }
    mantissa = value << (63 - whole) << 1;
    part = (size_t)(mantissa >> (64 - PARTS_BITS));
    fraction = mantissa >> (64 - PARTS_BITS - LOG_BITS) & ((1 << LOG_BITS) - 1);
    return ((uint64_t)whole << LOG_BITS) + log_parts[part] + ((log_parts[part + 1] - log_parts[part]) * fraction >> LOG_BITS);
}

#endif
