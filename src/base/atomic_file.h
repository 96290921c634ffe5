// Files and folders that appear whole or not at all: written aside under a temporary name, flushed to the disk, then
// renamed.
#pragma once

#include <filesystem>
#include <string_view>

namespace conclave {

// Replaces `path` by `content`. On any failure the old file is untouched, and the error names the file and the reason.
void write_file_atomically(const std::filesystem::path& path, std::string_view content);

// Flushes a file's (or folder's) content to the disk.
void flush_to_disk(const std::filesystem::path& path);

// Renames a finished folder into place and flushes its parent. `to` must not exist.
void publish_folder(const std::filesystem::path& from, const std::filesystem::path& to);

}  // namespace conclave
