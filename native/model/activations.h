// Every buffer of the forward pass, allocated once for the largest batch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/aligned_buffer.h"
#include "kernels/kernels.h"
#include "model/config.h"

namespace aperto {

// Rows of activations as int8 blocks.
struct Q8Buffer {
  AlignedBuffer<int8_t> values;    // [rows, k]
  AlignedBuffer<float> scales;     // [rows, k / 32]
  AlignedBuffer<int32_t> starts;   // [rows, k / 32]

  Q8Buffer(size_t rows, size_t k)
      : values(rows * k), scales(rows * (k / kBlock)), starts(rows * (k / kBlock)) {}

  // A view for rows of width k, starting at `first`.
  Q8Rows rows(size_t k, size_t first = 0) {
    const size_t blocks = k / kBlock;
    return {values.data() + first * k, scales.data() + first * blocks,
            starts.data() + first * blocks, k};
  }
};

struct Activations {
  size_t max_tokens;
  size_t max_slots;  // tokens x experts of a token, for the layer with the most

  AlignedBuffer<float> x;          // [tokens, hidden], the residual stream
  AlignedBuffer<float> normed;     // [tokens, hidden]
  AlignedBuffer<float> rope_cos;   // [tokens, head_dim / 2], concentration included
  AlignedBuffer<float> rope_sin;   // [tokens, head_dim / 2]
  AlignedBuffer<float> qkv;        // [tokens, q + 2 kv]
  AlignedBuffer<float> attended;   // [tokens, q]
  AlignedBuffer<float> router;     // [tokens, experts rounded up to 16]
  AlignedBuffer<int32_t> chosen;   // [slots], experts of each token, best first
  AlignedBuffer<float> weight;     // [slots], softmax over the chosen
  AlignedBuffer<int32_t> row_of;   // [slots], the slot's row after grouping by expert
  AlignedBuffer<int32_t> token_of; // [slots], the token of each grouped row
  AlignedBuffer<float> act;        // [slots, inter], grouped by expert
  AlignedBuffer<float> expert_out; // [slots, hidden], grouped by expert
  Q8Buffer q8;                     // quantised input of the current dense product or of the experts
  Q8Buffer q8_act;                 // [slots, inter] quantised
  std::vector<AlignedBuffer<float>> gate;  // a thread: [slots of one expert, 16]
  std::vector<AlignedBuffer<float>> up;    // a thread: the same

  Activations(const ModelShape& shape, size_t tokens, int num_threads)
      : max_tokens(tokens),
        max_slots(tokens * max_experts_per_token(shape)),
        x(tokens * shape.hidden_size),
        normed(tokens * shape.hidden_size),
        rope_cos(tokens * shape.head_dim / 2),
        rope_sin(tokens * shape.head_dim / 2),
        qkv(tokens * shape.qkv_size()),
        attended(tokens * shape.q_size()),
        router(tokens * round_up(max_experts(shape), kTileRows)),
        chosen(max_slots),
        weight(max_slots),
        row_of(max_slots),
        token_of(max_slots),
        act(max_slots * shape.intermediate_size),
        expert_out(max_slots * shape.hidden_size),
        q8(tokens, std::max(shape.hidden_size, shape.q_size())),
        q8_act(max_slots, shape.intermediate_size) {
    for (int thread = 0; thread < num_threads; ++thread) {
      gate.emplace_back(tokens * kTileRows);
      up.emplace_back(tokens * kTileRows);
    }
  }

 private:
  static size_t max_experts(const ModelShape& shape) {
    size_t most = 0;
    for (const LayerShape& layer : shape.layers) most = std::max(most, layer.num_experts);
    return most;
  }
  static size_t max_experts_per_token(const ModelShape& shape) {
    size_t most = 0;
    for (const LayerShape& layer : shape.layers) most = std::max(most, layer.experts_per_token);
    return most;
  }
};

}  // namespace aperto
