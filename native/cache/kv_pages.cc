#include "cache/kv_pages.h"

#include <cstring>

#include "base/check.h"
#include "kernels/kernels.h"

namespace aperto {
namespace {

size_t head_bytes(const ModelShape& shape, KvKind kind) {
  return 2 * kPageTokens * shape.head_dim * (kind == KvKind::kF16 ? 2 : 4);
}

}  // namespace

size_t KvPages::page_bytes(const ModelShape& shape, KvKind kind, size_t group) {
  size_t layers = 0;
  for (const LayerShape& layer : shape.layers) layers += layer.group == group;
  return layers * shape.num_kv_heads * head_bytes(shape, kind);
}

KvPages::KvPages(const ModelShape& shape, KvKind kind, const std::vector<size_t>& num_pages)
    : kind_(kind),
      head_bytes_(head_bytes(shape, kind)),
      layer_bytes_(shape.num_kv_heads * head_bytes_) {
  check(num_pages.size() == shape.group_windows.size(), "num_pages has ", num_pages.size(),
        " entries; expected one a window group: ", shape.group_windows.size());
  std::vector<size_t> layers_in_group(num_pages.size());
  for (const LayerShape& layer : shape.layers) {
    layer_group_.push_back(layer.group);
    layer_index_.push_back(layers_in_group[layer.group]++);
  }
  for (size_t group = 0; group < num_pages.size(); ++group) {
    const size_t bytes = page_bytes(shape, kind, group);
    groups_.push_back({num_pages[group], bytes, AlignedBuffer<uint8_t>(num_pages[group] * bytes)});
  }
}

size_t KvPages::bytes() const {
  size_t total = 0;
  for (const Group& group : groups_) total += group.memory.bytes();
  return total;
}

bool KvPages::fits(const ModelShape& shape) const {
  if (shape.layers.size() != layer_group_.size()) return false;
  for (size_t layer = 0; layer < layer_group_.size(); ++layer) {
    if (shape.layers[layer].group != layer_group_[layer]) return false;
  }
  return head_bytes_ == head_bytes(shape, kind_) &&
         layer_bytes_ == shape.num_kv_heads * head_bytes_;
}

uint8_t* KvPages::head(size_t layer, size_t page, size_t kv_head) {
  Group& group = groups_[layer_group_[layer]];
  return group.memory.data() + page * group.page_bytes + layer_index_[layer] * layer_bytes_ +
         kv_head * head_bytes_;
}

uint8_t* KvPages::page(size_t group, size_t page) {
  check(group < groups_.size(), "page group ", group, " does not exist; expected < ",
        groups_.size());
  Group& g = groups_[group];
  check(page < g.num_pages, "page ", page, " is out of range; group ", group, " has ", g.num_pages,
        " pages");
  return g.memory.data() + page * g.page_bytes;
}

void KvPages::copy_page(size_t group, size_t source, size_t destination) {
  check(group < groups_.size(), "page group ", group, " does not exist; expected < ",
        groups_.size());
  Group& g = groups_[group];
  check(source < g.num_pages && destination < g.num_pages, "copy of page ", source, " to ",
        destination, " is out of range; group ", group, " has ", g.num_pages, " pages");
  if (source == destination) return;
  std::memcpy(g.memory.data() + destination * g.page_bytes, g.memory.data() + source * g.page_bytes,
              g.page_bytes);
}

}  // namespace aperto
