/* zstd frames of literals alone; see huffman.c. */

#ifndef CASSTORE_HUFFMAN_H
#define CASSTORE_HUFFMAN_H

#include <stddef.h>
#include <stdint.h>

/* The bytes that a frame of `size` bytes may take while it is written. */
size_t casstore_literals_room(size_t size);

/* Writes one frame to `to`, which has that room, and returns its size; 0 if it is not smaller than `size`. Where `to` is NULL,
 * nothing is written, and the size is an estimate, a few bytes too large. Touches no Python object. */
size_t casstore_literals(const uint8_t *data, size_t size, uint8_t *to);

/* About how many positions in `data` begin 8 bytes that occurred before, not far away. */
size_t casstore_repeats(const uint8_t *data, size_t size);

/* The entropy, in 65536ths of a bit, of each column of elements of 1, 2, 4 and 8 bytes: 1 + 2 + 4 + 8 numbers. For less than 16 MiB. */
void casstore_column_bits(const uint8_t *data, size_t size, uint64_t *bits);

#endif
