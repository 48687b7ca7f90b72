// The compiler vectorises these loops for any CPU: integers and float32 alone, no branches inside.
#include "kernels/mxfp4_encode.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "base/float_environment.h"
#include "kernels/kernels.h"
#include "kernels/scalar_math.h"

namespace aperto {
namespace {

constexpr size_t kStripRows = 32;  // of bfloat16, a cache line where the matrix lies transposed
constexpr int32_t kInfinity = 0x7f800000;
constexpr int32_t kSix = 0x40c00000;  // bits of 6, the largest grid point

float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float to_float(float value) { return value; }
float to_float(uint16_t bf16) { return bf16_to_float(bf16); }

// Values k .. k + 31 of `count` rows.
template <typename T>
void gather(const StridedMatrix<T>& m, size_t row, size_t count, size_t k, float (*strip)[kBlock]) {
  const T* corner =
      m.data + static_cast<ptrdiff_t>(row) * m.row_stride + static_cast<ptrdiff_t>(k) * m.k_stride;
  if (m.k_stride == 1) {
    for (size_t r = 0; r < count; ++r) {
      const T* in = corner + static_cast<ptrdiff_t>(r) * m.row_stride;
      for (size_t i = 0; i < kBlock; ++i) strip[r][i] = to_float(in[i]);
    }
  } else {
    for (size_t i = 0; i < kBlock; ++i) {
      const T* in = corner + static_cast<ptrdiff_t>(i) * m.k_stride;
      for (size_t r = 0; r < count; ++r) {
        strip[r][i] = to_float(in[static_cast<ptrdiff_t>(r) * m.row_stride]);
      }
    }
  }
}

// Bits of the largest magnitude.
int32_t largest_bits(const float* values) {
  int32_t largest = 0;
  for (size_t i = 0; i < kBlock; ++i) {
    largest = std::max(largest, static_cast<int32_t>(bits_of(values[i]) & 0x7fffffff));
  }
  return largest;
}

template <typename Fold>
float fold(float* values, Fold together) {
  for (size_t half = kBlock / 2; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) values[i] = together(values[i], values[i + half]);
  }
  return values[0];
}

// Quantises one block, given its scale; everything but the error is in units of the scale.
void encode_block(const float* values, uint8_t scale, uint8_t* block, Mxfp4Error& error) {
  const float inverse = float_of(static_cast<uint32_t>(254 - scale) << 23);  // 2^(127 - scale)
  uint8_t codes[kBlock];
  float differences[kBlock];
  float noise[kBlock];
  float power[kBlock];
  for (size_t i = 0; i < kBlock; ++i) {
    const float units = std::fabs(values[i]) * inverse;
    // Bits of magnitudes compare as integers do, which the compiler vectorises without branches.
    const int32_t bits = static_cast<int32_t>(bits_of(units));
    const int32_t clamped = bits < kSix ? bits : kSix;
    // The grid has steps of 0.5 up to 2, of 1 up to 4, of 2 above. Adding the power of two whose
    // last bit is that step rounds to it, ties to even, and leaves the count of steps in the bits.
    const int32_t exponent = clamped >> 23;
    const uint32_t range = static_cast<uint32_t>(exponent > 127 ? exponent - 127 : 0);
    const uint32_t shift = (149 + range) << 23;  // 2^22, 2^23, 2^24
    const float shifted = float_of(static_cast<uint32_t>(clamped)) + float_of(shift);
    const uint32_t sign = bits_of(values[i]) >> 31 << 3;
    codes[i] = static_cast<uint8_t>((bits_of(shifted) - shift + 2 * range) | sign);
    differences[i] = std::fabs(shifted - float_of(shift) - units);
    noise[i] = differences[i] * differences[i];
    power[i] = units * units;
  }
  for (size_t j = 0; j < kBlock / 2; ++j) {
    block[j] = static_cast<uint8_t>(codes[2 * j] | (codes[2 * j + 1] << 4));
  }
  const auto plus = [](float a, float b) { return a + b; };
  const auto max = [](float a, float b) { return std::max(a, b); };
  const uint64_t unit_bits = static_cast<uint64_t>(scale + 1023 - 127) << 52;
  double unit;  // 2^(scale - 127)
  std::memcpy(&unit, &unit_bits, sizeof unit);
  error.noise += fold(noise, plus) * unit * unit;
  error.power += fold(power, plus) * unit * unit;
  error.max_abs = std::max(error.max_abs, fold(differences, max) * unit);
}

template <typename T>
Mxfp4Error encode(const StridedMatrix<T>& m, uint8_t* blocks, uint8_t* scales) {
  const FloatEnvironment environment;
  const size_t num_blocks = m.k / kBlock;
  const size_t num_strips = (m.rows + kStripRows - 1) / kStripRows;
  const bool by_rows = m.k_stride == 1;  // else along a block's columns, as the memory lies
  Mxfp4Error error;
  float strip[kStripRows][kBlock];
  for (size_t n = 0; n < num_strips * num_blocks; ++n) {
    const size_t row = (by_rows ? n / num_blocks : n % num_strips) * kStripRows;
    const size_t b = by_rows ? n % num_blocks : n / num_strips;
    const size_t count = std::min(kStripRows, m.rows - row);
    gather(m, row, count, b * kBlock, strip);
    for (size_t r = 0; r < count; ++r) {
      const int32_t largest = largest_bits(strip[r]);
      check(largest < kInfinity,
            "found NaN or infinite values; expected finite weights; MXFP4 cannot hold them");
      // The exponent field is floor(log2(amax)) + 127, and 0 or 1 for denormals and zero.
      const auto scale = static_cast<uint8_t>(std::max(largest >> 23, 2) - 2);
      const size_t at = (row + r) * num_blocks + b;
      scales[at] = scale;
      encode_block(strip[r], scale, blocks + at * 16, error);
    }
  }
  return error;
}

}  // namespace

Mxfp4Error encode_mxfp4(const StridedMatrix<float>& values, uint8_t* blocks, uint8_t* scales) {
  return encode(values, blocks, scales);
}

Mxfp4Error encode_mxfp4(const StridedMatrix<uint16_t>& bf16, uint8_t* blocks, uint8_t* scales) {
  return encode(bf16, blocks, scales);
}

}  // namespace aperto
