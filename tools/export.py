"""Export the notebooks, and move the comments of parameters into docstrings, where `help()` and editors show them.

`python tools/export.py` is the one way of exporting: what nbdev writes is rewritten module by module. A comment behind
a parameter goes under `Parameters:`, one behind the signature under `Returns:`. Comments of a dataclass's fields stay
beside them, where the command line reads them. What has no docstring keeps its comments."""
import ast
import io
import re
import sys
import textwrap
import tokenize
from bisect import bisect_left
from pathlib import Path
from typing import NamedTuple

WIDTH = 110
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BREAKS = (tokenize.COMMENT, tokenize.NL)

class Source:
    "Text of a module with its tokens, their places counted in characters from the start"
    def __init__(self, text:str):
        self.text = text
        self.lines = text.split('\n')
        self.starts = [0]
        for line in self.lines: self.starts.append(self.starts[-1] + len(line) + 1)
        self.tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))

    def at(self, position)->int:
        "Return the place of a token's `(line, column)`"
        return self.starts[position[0] - 1] + position[1]

    def span(self, node)->tuple:
        "Return the places where a syntax node starts and ends; `ast` counts columns in bytes"
        def place(line, column): return self.at((line, len(self.lines[line - 1].encode()[:column].decode())))
        return place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)

    def is_alone(self, token)->bool:
        "Tell whether a comment has a line of its own"
        return not self.lines[token.start[0] - 1][:token.start[1]].strip()

class Header(NamedTuple):
    "Tokens of `def name(...)->result:`"
    tokens: list     # from `def` to the colon
    close: tuple     # position of the parenthesis that ends the parameters
    after: list      # comment behind the colon, if any

    @property
    def comments(self):
        "List the comments"
        return [t for t in self.tokens if t.type == tokenize.COMMENT] + self.after

def header_of(source, node)->Header:
    "Find the header of a function"
    first = bisect_left(source.tokens, (node.lineno, node.col_offset), key=lambda t: t.start)
    while source.tokens[first].type != tokenize.NAME: first += 1    # an indent stands at the same place
    depth, close = 0, None
    for last, token in enumerate(source.tokens[first:], first):  # noqa: B007 the colon is the last
        depth += (token.string in ('(', '[', '{')) - (token.string in (')', ']', '}'))
        if token.string == ')' and not depth and not close: close = token.start
        if token.string == ':' and not depth: break
    after = [t for t in source.tokens[last + 1:last + 2] if t.type == tokenize.COMMENT]
    return Header(source.tokens[first:last + 1], close, after)

def parameters(function)->list:
    "List the parameters in their order"
    a = function.args
    found = [*a.posonlyargs, *a.args, *filter(None, [a.vararg]), *a.kwonlyargs, *filter(None, [a.kwarg])]
    return [p for p in found if p.arg not in ('self', 'cls')]

def names_of(comment, source, header, function)->tuple:
    "Return the names of the parameters that a comment is about; () where it is about the result"
    line, found = comment.start[0], parameters(function)
    on_line = [p.arg for p in found if p.lineno == line]
    if comment.start > header.close:
        said = re.match(r'# *`?(\w+)`?: ', comment.string)
        if said and said[1] in on_line: return (said[1],)
        is_result = function.returns or re.match(r'# *(yields|returns|raises)\b', comment.string)
        return () if is_result else tuple(on_line[-1:])
    if source.is_alone(comment): return tuple(p.arg for p in found if p.lineno > line)[:1]
    return tuple(on_line or [p.arg for p in found if p.lineno < line][-1:])

def entries(comments)->list:
    "Write pairs of names and comment as `name: comment`, in their order, each name once"
    texts_of = {}
    for names, comment in comments:
        words = comment.string.lstrip('#').strip()
        if len(names) == 1: words = re.sub(rf'^`?{names[0]}`?: *', '', words)
        texts_of.setdefault(names, []).append(words)
    return [': '.join(filter(None, [', '.join(names), ' '.join(texts)])) for names, texts in texts_of.items()]

def joined(source, header, indent:int, tail:int)->str:
    "Write a header without comments on one line, or on several filled up to `WIDTH`"
    parts, depth, before = [''], 0, None
    tokens = [t for t in header.tokens if t.type not in BREAKS]
    for token, following in zip(tokens, [*tokens[1:], None]):
        if token.string == ',' and depth == 1 and following.start == header.close: continue
        parts[-1] += gap(source, before, token) + token.string
        depth += (token.string in ('(', '[', '{')) - (token.string in (')', ']', '}'))
        if token.string == ',' and depth == 1: parts.append('')
        before = token
    lines = [' '*indent]
    room = WIDTH - tail
    if indent + len(''.join(parts)) <= room: return ''.join(parts)
    for i, part in enumerate(parts):
        if i and len(lines[-1] + part) > (room if i == len(parts) - 1 else WIDTH):
            lines.append(' '*(indent + 8))
            part = part.lstrip()
        lines[-1] += part
    return '\n'.join(line.rstrip() for line in lines).lstrip()

def gap(source, before, token)->str:
    "Return the space between two tokens, that of a line break or a wide one narrowed"
    if before is None: return ''
    between = source.text[source.at(before.end):source.at(token.start)]
    if '\n' not in between: return ' ' if before.string == ',' and between else between
    return '' if before.string in ('(', '[', '{') or token.string in (')', ']', '}') else ' '

def with_section(doc:str, heading:str, items:list, indent:int)->str:
    "Add a section to a docstring, or items to the section of that name"
    below = [line for line in doc.split('\n')[1:] if line.strip()]
    margin = min([len(line) - len(line.lstrip()) for line in below], default=indent)
    lines = [f'{heading}:', *(f'    {item}' for item in items)]
    if heading == 'Returns': lines = [f'{heading}: {" ".join(items)}']
    lines = [textwrap.fill(line.strip(), **wrap(margin + len(line) - len(line.lstrip()))) for line in lines]
    block = '\n'.join(lines)
    if not items or block in doc: return doc
    there = re.search(rf'^ *{heading}:[ \t]*\n', doc, re.M)
    if there: return f'{doc[:there.end()]}' + '\n'.join(lines[1:]) + f'\n{doc[there.end():].rstrip()}'
    has_sections = re.search(r'^ *(Parameters|Returns):', doc, re.M)
    ending = f'\n{" "*margin}' if block.endswith('"') else ''
    return doc.rstrip() + ('\n' if has_sections else '\n\n') + block + ending

def wrap(indent:int)->dict:
    "Return the settings of `textwrap` for lines of a section"
    return dict(width=WIDTH, initial_indent=' '*indent, subsequent_indent=' '*(indent + 4),
                break_long_words=False, break_on_hyphens=False)

def literal(doc:str)->str:
    "Write a docstring in triple quotes"
    escaped = doc.replace('\\', '\\\\').replace('"""', r'\"\"\"').replace('\r', r'\r')
    written = f'"""{escaped}"""'
    if ast.literal_eval(written) != doc: raise ValueError(f'cannot write this docstring: {doc!r}')
    return written

def docstring_of(node):
    "Return the syntax node of a docstring, or None"
    return node.body[0].value if ast.get_docstring(node, clean=False) is not None else None

def definitions(node, owner=None):
    "Yield functions, methods and classes, each with the class around it; what is inside a function is left out"
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*FUNCTIONS, ast.ClassDef)): yield child, owner
        inner = child if isinstance(child, ast.ClassDef) else owner
        if not isinstance(child, FUNCTIONS): yield from definitions(child, inner)

def header_edit(source, header, node)->tuple:
    "Return `(start, end, text)` of the edit that takes the comments out of a header"
    start = source.at(header.tokens[0].start)
    colon = header.tokens[-1].end
    is_followed = node.body[0].lineno == colon[0] and docstring_of(node) is None
    tail = len(source.lines[colon[0] - 1]) - colon[1] if is_followed else 0
    end = header.after[0].end if header.after else colon
    return start, source.at(end), joined(source, header, node.col_offset, tail)

def docstring_edit(source, node, sections)->tuple:
    "Return `(start, end, text)` of the edit that adds sections to the docstring of a function or class"
    home, indent = docstring_of(node), node.col_offset + 4
    start, end = source.span(home)
    doc = home.value
    for heading, items in sections: doc = with_section(doc, heading, items, indent)
    if doc == home.value: return start, end, source.text[start:end]
    before = source.text[:start].rstrip(' ')
    if before.endswith('\n'): return start, end, literal(doc)
    return len(before), end, f'\n{" "*indent}{literal(doc)}'    # it stood behind the colon

def edits(source)->list:
    "List the edits of headers and docstrings"
    found, sections = [], {}
    for node, owner in definitions(ast.parse(source.text)):
        home = owner if node.name == '__init__' and owner and not docstring_of(node) else node
        if not docstring_of(home): continue
        if isinstance(node, ast.ClassDef): continue
        header = header_of(source, node)
        if not header.comments: continue
        about = [(names_of(c, source, header, node), c) for c in header.comments]
        added = sections.setdefault(home, [])
        added.append(('Parameters', entries(s for s in about if s[0])))
        added.append(('Returns', entries(s for s in about if not s[0])))
        found.append(header_edit(source, header, node))
    return found + [docstring_edit(source, *item) for item in sections.items()]

def moved(text:str)->str:
    "Move the comments of a module into its docstrings, and check that the code stays the same"
    result = text
    for start, end, new in sorted(edits(Source(text)), reverse=True): result = result[:start] + new + result[end:]
    if code(result) != code(text): raise ValueError('moving comments changed the code')
    return result

def code(text:str)->str:
    "Dump the syntax tree of a module without docstrings"
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and docstring_of(node): node.body.pop(0)
    return ast.dump(tree)

def generated(folder)->list:
    "List the modules of a package that nbdev wrote"
    line = '\n# AUTOGENERATED! DO NOT EDIT!'
    return [p for p in sorted(Path(folder).rglob('*.py')) if line in p.read_text(encoding='utf-8')]

def main():
    "Export the notebooks of the project in the working directory"
    from nbdev.config import get_config
    from nbdev.doclinks import nbdev_export
    nbdev_export.__wrapped__()
    for path in generated(get_config().lib_path):
        try: path.write_text(moved(path.read_text(encoding='utf-8')), encoding='utf-8')
        except ValueError as e: sys.exit(f'{path}: {e}')

if __name__ == '__main__': main()
