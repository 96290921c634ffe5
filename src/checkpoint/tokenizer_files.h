// The files beside a model's weights that its text needs: a tokenizer in any of the forms that Transformers reads, and
// its chat templates.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string_view>

namespace conclave {

// The one folder among them.
inline constexpr std::string_view chat_templates_folder = "additional_chat_templates";

// By a file's name.
bool is_tokenizer_file(std::string_view name);

// Copies all of them, flushed to the disk. UserError: one of them cannot be read.
void copy_tokenizer(const std::filesystem::path& from, const std::filesystem::path& to);

// The highest token id that the folder's tokenizer can give, plus 1; nothing where no file says. UserError for a file
// that cannot be read or is malformed.
std::optional<int64_t> tokenizer_ids(const std::filesystem::path& folder);

}  // namespace conclave
