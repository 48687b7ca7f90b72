// Memory for keys and values, in pages of kPageTokens tokens.
//
// Layers with the same window form a group and share page numbers, since their pages live and die
// together. A page holds, for every layer of its group and every key/value head,
// keys [head_dim, kPageTokens] then values [kPageTokens, head_dim].
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/aligned_buffer.h"
#include "model/config.h"

namespace aperto {

enum class KvKind { kF16, kF32 };

class KvPages {
 public:
  // num_pages: one count a group of shape.group_windows. Memory is committed on first write.
  KvPages(const ModelShape& shape, KvKind kind, const std::vector<size_t>& num_pages);
  KvPages(const KvPages&) = delete;
  KvPages& operator=(const KvPages&) = delete;

  KvKind kind() const { return kind_; }
  size_t num_groups() const { return groups_.size(); }
  size_t num_pages(size_t group) const { return groups_[group].num_pages; }
  size_t page_bytes(size_t group) const { return groups_[group].page_bytes; }
  size_t bytes() const;
  // Whether the pages are laid out for this model: heads, layers and their groups.
  bool fits(const ModelShape& shape) const;

  // Start of the keys of one layer and key/value head; the values follow after
  // head_dim * kPageTokens elements.
  uint8_t* head(size_t layer, size_t page, size_t kv_head);

  // The page_bytes(group) bytes of a page. Throws std::invalid_argument for numbers out of range.
  uint8_t* page(size_t group, size_t page);

  // Copies a whole page within its group. Throws std::invalid_argument for numbers out of range.
  void copy_page(size_t group, size_t source, size_t destination);

  static size_t page_bytes(const ModelShape& shape, KvKind kind, size_t group);

 private:
  struct Group {
    size_t num_pages;
    size_t page_bytes;
    AlignedBuffer<uint8_t> memory;
  };
  KvKind kind_;
  size_t head_bytes_;
  size_t layer_bytes_;
  std::vector<size_t> layer_group_;  // [layers]
  std::vector<size_t> layer_index_;  // [layers], position inside its group
  std::vector<Group> groups_;
};

}  // namespace aperto
