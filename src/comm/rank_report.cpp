#include "comm/rank_report.h"

#include <sstream>

#include <fmt/core.h>

namespace conclave {
namespace {

void write(std::ostream& out, const char* field, const std::optional<Operation>& operation) {
  if (operation)
    out << field << ' ' << operation->communicator << ' ' << operation->name << ' ' << operation->number << '\n';
}

}  // namespace

std::string Operation::text() const {
  const std::string axis = communicator.substr(0, communicator.find('/'));
  return number == 0 ? fmt::format("{} of the {} axis", name, axis)
                     : fmt::format("{} #{} of the {} axis", name, number, axis);
}

// One field a line: a word, then its values. No value holds a blank, but for a host at the end of its line.
std::string RankReport::encode() const {
  std::ostringstream out;
  out << "beat " << beat << "\nstate " << static_cast<int>(state) << '\n';
  write(out, "waits_in", waits_in);
  write(out, "last", last);
  for (const auto& [communicator, number] : numbers) out << "number " << communicator << ' ' << number << '\n';
  out << "process " << process << ' ' << host << '\n';
  return out.str();
}

std::optional<RankReport> RankReport::decode(std::string_view text) {
  RankReport report;
  std::istringstream lines{std::string(text)};
  for (std::string line; std::getline(lines, line);) {
    std::istringstream in(line);
    std::string field;
    in >> field;
    if (field == "beat") {
      in >> report.beat;
    } else if (field == "state") {
      int state = 0;
      in >> state;
      if (state < 0 || state > static_cast<int>(RankState::finished)) return {};
      report.state = static_cast<RankState>(state);
    } else if (field == "waits_in" || field == "last") {
      Operation operation;
      in >> operation.communicator >> operation.name >> operation.number;
      (field == "last" ? report.last : report.waits_in) = operation;
    } else if (field == "number") {
      std::string communicator;
      in >> communicator;
      in >> report.numbers[communicator];
    } else if (field == "process") {
      if (!(in >> report.process)) return {};
      std::getline(in >> std::ws, report.host);  // perhaps nothing
      in.clear();
    } else {
      return {};
    }
    if (in.fail()) return {};
  }
  return report.beat > 0 ? std::optional(report) : std::nullopt;
}

}  // namespace conclave
