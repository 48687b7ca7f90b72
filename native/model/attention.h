// One attention layer: projections, rotation, pages, sinks.
#pragma once

#include "model/forward.h"

namespace aperto {

// Fills the batch's cosines and sines, concentration included.
void fill_rope(ForwardContext& context);

// x += attention(norm(x)) for every token of the batch.
void attention_layer(ForwardContext& context, size_t layer);

}  // namespace aperto
