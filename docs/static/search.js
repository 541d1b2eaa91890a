// Explanations stand above lists of names and benchmarks; the other scores are those of Sphinx
var Scorer = {
  score: ([docname, title, anchor, descr, score]) =>
    score + (/^10_benchmarks|^api$/.test(docname) ? -8 : /^(tutorials|core_path|experiments)/.test(docname) ? 4 : 0),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: {0: 15, 1: 5, 2: -5},
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
}
