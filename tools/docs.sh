# Part of ./dev: the documentation as a site.

# In build/site. A link, an anchor or a page that is missing fails it.
make_docs() {
  stage "set-up" set_up
  stage "set-up: tools" set_up_tools docs
  stage "build" build release conclave
  # mkdocs tells of its own future on every start; NO_MKDOCS_2_WARNING is how it is asked not to.
  NO_MKDOCS_2_WARNING=1 stage "site" .venv-docs/bin/mkdocs build --strict --quiet
  say "the site: build/site/index.html"
}
