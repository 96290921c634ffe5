// conclave chat: a conversation with a model, by the chat template of its tokenizer.
#include <fmt/core.h>

#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "apps/chat_input.h"
#include "apps/command.h"
#include "apps/prompts.h"
#include "apps/speaking_model.h"
#include "base/error.h"
#include "checkpoint/rank_texts.h"
#include "checkpoint/together.h"

namespace conclave {
namespace {

using nlohmann::json;

constexpr int64_t usual_answer = 1024;  // tokens

struct Options {
  SpeakingOptions speaking;
  std::string system;
};

// The side of rank 0: the user, and the conversation so far.
class Conversation {
 public:
  Conversation(std::string system, TextProcess& text) : system_(std::move(system)), text_(text) { reset(); }

  // The tokens up to where the assistant is to speak; none: the user quits.
  std::vector<int64_t> next_turn() {
    while (true) {
      if (input_.is_terminal()) std::cout << "> " << std::flush;
      const std::optional<std::string> line = input_.read_line();
      if (!line || *line == "/quit") {
        if (!line && input_.is_terminal()) std::cout << std::endl;
        return {};
      }
      if (*line == "/reset") {
        reset();
        continue;
      }
      if (line->empty()) continue;
      messages_.push_back({"user", *line});
      prompt_ = text_.encode_chat(messages_);
      answer_.clear();
      text_.begin_text(0, prompt_);
      return prompt_;
    }
  }

  // Shows it. Returns whether the answer ends here.
  bool take(int64_t token) {
    const TextProcess::Shown shown = text_.append({{0, token}});
    show(shown.text[0]);
    return !shown.stopped.empty() || input_.take_interrupt();
  }

  void end_turn(Finish finish) {
    show(text_.end_text(0));
    std::cout << (finish == Finish::length ? " [...]" : "") << std::endl;
    messages_.push_back({"assistant", answer_});
  }

  // The turn that could not be answered.
  void take_back(const std::exception& error) {
    if (!input_.is_terminal()) throw;
    std::cerr << "error: " << error.what() << std::endl;
    messages_.pop_back();
  }

 private:
  void reset() {
    messages_.clear();
    if (!system_.empty()) messages_.push_back({"system", system_});
  }
  void show(const std::string& text) {
    answer_ += text;
    std::cout << text << std::flush;
  }

  ChatInput input_;
  std::string system_;
  TextProcess& text_;
  std::vector<TextProcess::Message> messages_;
  std::vector<int64_t> prompt_;
  std::string answer_;
};

void run(ParallelJob& job, const Options& options, const SpeakingSource& source) {
  Communicator& ranks = job.host_world();
  const std::unique_ptr<TextProcess> text = start_text_process(job, source.tokenizer(), options.speaking.stop_words);
  GenerationOptions generation = source.generation(job.model_config());
  generation.listener_ends_texts = true;
  SpeakingModel model(job, source, job.model_config().max_position_embeddings);
  std::unique_ptr<Conversation> conversation;
  if (text) conversation = std::make_unique<Conversation>(options.system, *text);
  KeptSequence kept;
  while (true) {
    std::vector<int64_t> prompt;
    together(ranks, [&] {
      while (conversation) {
        try {
          prompt = conversation->next_turn();
          if (!prompt.empty())
            fit_to_prompts(generation, job.model_config(), {prompt}, options.speaking.max_new_tokens, usual_answer);
          break;
        } catch (const UserError& error) {
          conversation->take_back(error);
        }
      }
    });
    prompt = json::parse(broadcast_text(ranks, 0, json(prompt).dump())).get<std::vector<int64_t>>();
    if (prompt.empty()) return;
    fit_to_prompts(generation, job.model_config(), {prompt}, options.speaking.max_new_tokens, usual_answer);
    const auto listen = [&](std::span<const GeneratedToken> tokens) {
      const bool ends = conversation && !tokens.empty() && conversation->take(tokens[0].token);
      return ends ? std::vector<int64_t>{0} : std::vector<int64_t>();
    };
    const std::vector<GeneratedText> answers = generate(model.cached(), ranks, {prompt}, generation, listen, &kept);
    if (conversation) conversation->end_turn(answers[0].finish);
  }
}

}  // namespace

void add_chat(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("chat", "speak with a model");
  options->speaking.add_to(*command);
  command->add_option("--system", options->system, "what the conversation begins with, as the system's message");
  command->footer(
      "A line is a message; /reset begins anew, /quit or the end of the input ends. Ctrl-C ends an answer, and the "
      "chat if none is being written. Lines may come from a pipe.\n\n"
      "conclave chat model --temperature 0.7 --system \"You answer in one sentence.\"");
  command->callback([options, &exit_code] {
    std::unique_ptr<SpeakingSource> source;
    const auto make = [&](int world) {
      SpeakingOptions patient = options->speaking;
      patient.overrides.insert(patient.overrides.begin(), "run.timeout_seconds=31536000");  // users think
      source = std::make_unique<SpeakingSource>(patient);
      CheckedJob job = source->job_for(world);
      source->tokenizer();
      source->generation(job.model);
      return job;
    };
    exit_code = run_on_ranks(options->speaking.ranks, make, [&](ParallelJob& job) { run(job, *options, *source); });
  });
}

}  // namespace conclave
