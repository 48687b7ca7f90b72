// Copies of what passes named points of a forward pass. Reading changes nothing.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

namespace aperto {

struct Tap {
  std::vector<size_t> shape;
  std::vector<float> values;
};

class Taps {
 public:
  explicit Taps(std::set<std::string> points) : points_(std::move(points)) {}

  static std::string name(size_t layer, const char* point) {
    return "layers." + std::to_string(layer) + "." + point;
  }
  bool wants(const std::string& name) const { return points_.count(name) != 0; }
  // Copies `rows` rows of `width` floats that lie `stride` apart.
  void put(const std::string& name, const float* data, size_t rows, size_t width, size_t stride) {
    if (!wants(name)) return;
    Tap& tap = taken[name];
    tap.shape = {rows, width};
    tap.values.clear();
    for (size_t row = 0; row < rows; ++row) {
      tap.values.insert(tap.values.end(), data + row * stride, data + row * stride + width);
    }
  }

  std::map<std::string, Tap> taken;  // what the last batch left, by point

 private:
  std::set<std::string> points_;
};

}  // namespace aperto
