// MXFP4 as the kernels hold it.
//
// A tile interleaves 16 rows. For each block of 32 values along k there are 256 bytes, four groups
// j of 64: byte 4 r + i of group j holds the code of row r, k = 8 j + i in its low nibble and
// k = 8 j + 4 + i in its high nibble. So one 64-byte load and a shift give two vectors in which
// each 32-bit lane has four consecutive k of its row, which is what a byte dot product consumes.
// After all blocks: the E8M0 scales, [k / 32][16].
#pragma once

#include <cstddef>
#include <cstdint>

namespace aperto {

// Twice the value of each code, so that all are integers.
inline constexpr int8_t kMxfp4Twice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

inline constexpr size_t kMxfp4BlockBytes = 256;  // 16 rows x 32 values of a tile

// Smallest scale byte a tile may hold: below it half the scale is a denormal, which the kernels'
// exponent arithmetic cannot make. Packing turns such blocks (values under 2^-122) into zeros.
inline constexpr uint8_t kMxfp4MinScale = 2;

}  // namespace aperto
