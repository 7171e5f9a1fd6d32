"""The site also shows Markdown from outside of `docs/`: the gallery, the measurements, the changes.

Links in these files are written for the repository, where they lie elsewhere, and are changed here.
"""

from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
SHOWN = ["CHANGELOG.md", "examples/*.md", "benchmarks/*.md"]
LINKED = ["examples/*.py", "examples/figures/*.png", "benchmarks/*.py", "benchmarks/results/*.json"]
REPOSITORY_LINKS = {
    "](../examples/": "](examples/",
    "](../benchmarks/": "](benchmarks/",
    "](../CHANGELOG.md": "](CHANGELOG.md",
}


def on_files(files, config):
    """Add the files that lie outside of `docs/` under their own paths."""
    for pattern in SHOWN + LINKED:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown, page, **_):
    """Take `../docs/` out of links into the docs, and `../` out of links out of them."""
    if page.file.src_uri.startswith(("examples/", "benchmarks/")):
        return markdown.replace("](../docs/", "](../")
    for written, meant in REPOSITORY_LINKS.items():
        markdown = markdown.replace(written, meant)
    return markdown
