// One mixture-of-experts layer: router, experts, weighted sum.
#pragma once

#include "model/forward.h"

namespace aperto {

// x += experts(norm(x)) for every token of the batch.
void moe_layer(ForwardContext& context, size_t layer);

}  // namespace aperto
