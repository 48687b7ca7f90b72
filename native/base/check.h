// Errors at the boundary: throw with a message that carries the values, never abort.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace aperto {

// Throws std::invalid_argument with the concatenated parts unless `condition` holds.
template <typename... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

}  // namespace aperto
