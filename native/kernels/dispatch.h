// Which kernel set to use.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace aperto {

// The sets this CPU can run, best first. "reference" is always the last.
const std::vector<const Kernels*>& available_kernels();

// The best set, or the one called `name`; throws std::invalid_argument for a name that is unknown
// or that this CPU cannot run.
const Kernels& select_kernels(const std::string& name);

}  // namespace aperto
