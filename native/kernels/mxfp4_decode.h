// MXFP4 to plain numbers, in the order of a checkpoint; exact in either type.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"

namespace aperto {

// Decodes `num_blocks` blocks of 32 values: 16 bytes each, byte j = elements 2j (low nibble) and
// 2j + 1, with one scale each. A scale above 252 gives values that neither type holds; callers
// refuse such tensors when they are opened.
void decode_mxfp4(const uint8_t* blocks, const uint8_t* scales, size_t num_blocks, float* out);
void decode_mxfp4(const Kernels& kernels, const uint8_t* blocks, const uint8_t* scales,
                  size_t num_blocks, uint16_t* bf16);

}  // namespace aperto
