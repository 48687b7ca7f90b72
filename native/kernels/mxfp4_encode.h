// Quantising plain weights to MXFP4, in the order of a checkpoint. docs/mxfp4.md states the rules.
#pragma once

#include <cstddef>
#include <cstdint>

namespace aperto {

// A matrix of floats, or of bfloat16 bits: (row, k) lies at data[row * row_stride + k * k_stride].
template <typename T>
struct StridedMatrix {
  const T* data;
  size_t rows;
  size_t k;
  ptrdiff_t row_stride;
  ptrdiff_t k_stride;
};

// How far quantised values lie from the originals.
struct Mxfp4Error {
  double noise = 0.0;    // sum of squared differences
  double power = 0.0;    // sum of squared originals
  double max_abs = 0.0;  // largest absolute difference
};

// Quantises [rows, k], k a multiple of 32. blocks: [rows, k / 32, 16], byte j = elements 2j (low
// nibble) and 2j + 1; scales: [rows, k / 32]. Throws std::invalid_argument for NaN and infinities.
Mxfp4Error encode_mxfp4(const StridedMatrix<float>& values, uint8_t* blocks, uint8_t* scales);
Mxfp4Error encode_mxfp4(const StridedMatrix<uint16_t>& bf16, uint8_t* blocks, uint8_t* scales);

}  // namespace aperto
