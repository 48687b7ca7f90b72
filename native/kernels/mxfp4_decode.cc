// A byte is a pair of values once its scale is known: one load from a table of 256 pairs, which
// stays in the first cache since a tensor has few scales.
#include "kernels/mxfp4_decode.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/kernels.h"

namespace aperto {
namespace {

constexpr size_t kScales = 256;
constexpr size_t kBytes = 256;
constexpr float kValues[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                               -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

void store(float value, float* out) { *out = value; }
// Two bits of mantissa are left of any of these values, also below the normal range: the lower half
// of the float is zero.
void store(float value, uint16_t* out) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  *out = static_cast<uint16_t>(bits >> 16);
}

// [scale][byte][2]
template <typename T>
std::vector<T> make_table() {
  std::vector<T> table(kScales * kBytes * 2);
  for (size_t scale = 0; scale < kScales; ++scale) {
    for (size_t byte = 0; byte < kBytes; ++byte) {
      T* pair = table.data() + (scale * kBytes + byte) * 2;
      const int exponent = static_cast<int>(scale) - 127;
      store(std::ldexp(kValues[byte & 15], exponent), pair);
      store(std::ldexp(kValues[byte >> 4], exponent), pair + 1);
    }
  }
  return table;
}

template <typename T>
void decode(const uint8_t* blocks, const uint8_t* scales, size_t num_blocks, T* out) {
  static const std::vector<T> table = make_table<T>();
  for (size_t block = 0; block < num_blocks; ++block) {
    const T* pairs = table.data() + scales[block] * kBytes * 2;
    for (size_t j = 0; j < kBlock / 2; ++j) {
      std::memcpy(out + block * kBlock + 2 * j, pairs + blocks[block * kBlock / 2 + j] * 2,
                  2 * sizeof(T));
    }
  }
}

}  // namespace

void decode_mxfp4(const uint8_t* blocks, const uint8_t* scales, size_t num_blocks, float* out) {
  decode(blocks, scales, num_blocks, out);
}

void decode_mxfp4(const uint8_t* blocks, const uint8_t* scales, size_t num_blocks, uint16_t* bf16) {
  decode(blocks, scales, num_blocks, bf16);
}

}  // namespace aperto
