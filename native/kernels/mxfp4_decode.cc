#include "kernels/mxfp4_decode.h"

#include <cmath>
#include <cstring>
#include <vector>

namespace aperto {
namespace {

constexpr size_t kScales = 256;
constexpr size_t kBytes = 256;
constexpr float kValues[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                               -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

float scaled(size_t code, size_t scale) {
  return std::ldexp(kValues[code], static_cast<int>(scale) - 127);
}

// [scale][byte][2]
std::vector<float> make_pairs() {
  std::vector<float> table(kScales * kBytes * 2);
  for (size_t scale = 0; scale < kScales; ++scale) {
    for (size_t byte = 0; byte < kBytes; ++byte) {
      float* pair = table.data() + (scale * kBytes + byte) * 2;
      pair[0] = scaled(byte & 15, scale);
      pair[1] = scaled(byte >> 4, scale);
    }
  }
  return table;
}

// [scale][code, twice]. Two bits of mantissa are left of any of these values, also below the normal
// range: the lower half of the float is zero.
std::vector<uint16_t> make_bf16() {
  std::vector<uint16_t> table(kScales * kBlock);
  for (size_t i = 0; i < table.size(); ++i) {
    const float value = scaled(i & 15, i / kBlock);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    table[i] = static_cast<uint16_t>(bits >> 16);
  }
  return table;
}

}  // namespace

// A byte is a pair of values once its scale is known: one load from a table of 256 pairs, which
// stays in the first cache since a tensor has few scales.
void decode_mxfp4(const uint8_t* blocks, const uint8_t* scales, size_t num_blocks, float* out) {
  static const std::vector<float> table = make_pairs();
  for (size_t block = 0; block < num_blocks; ++block) {
    const float* pairs = table.data() + scales[block] * kBytes * 2;
    for (size_t j = 0; j < kBlock / 2; ++j) {
      std::memcpy(out + block * kBlock + 2 * j, pairs + blocks[block * kBlock / 2 + j] * 2,
                  2 * sizeof(float));
    }
  }
}

void decode_mxfp4(const Kernels& kernels, const uint8_t* blocks, const uint8_t* scales,
                  size_t num_blocks, uint16_t* bf16) {
  static const std::vector<uint16_t> table = make_bf16();
  kernels.mxfp4_decode_bf16(blocks, scales, num_blocks, table.data(), bf16);
}

}  // namespace aperto
