/* The search page: what is found in the order in which a reader wants it, each with a sentence of its text. No dependencies. */
"use strict";

(() => {
  const NOISE = "script, style, pre, button, nav, .headerlink, .visually-hidden, .katex-html, annotation, .reading, .facts-box, .explorer-controls, .sr-only";
  const BLOCKS = "p, li, dd, td, figcaption, dt, caption";
  const LONGEST = 260;

  /** Chapters and planned papers, parts and special pages, the glossary, the reference. */
  function kindOf([page, , , description]) {
    if (page.startsWith("notebooks/") || description?.startsWith("planned paper")) return 0;
    if (page.startsWith("book/api/")) return 3;
    return page === "book/notation" ? 2 : 1;
  }

  /** A paper's title leads to the top of its chapter. */
  function ofChapter(result) {
    return result[0].startsWith("notebooks/") && result[3] ? result.with(2, "") : result;
  }

  /** The glossary's entries are found under their page's name; here under their own. */
  function named(result) {
    const [page, title, anchor, description] = result;
    if (page !== "book/notation" || !anchor.startsWith("#term-") || description) return result;
    const { docnames, indexentries } = Search._index;
    const here = ([file, id]) => docnames[file] === page && `#${id}` === anchor;
    const entry = Object.entries(indexentries).find(([, places]) => places.some(here));
    return entry ? result.with(1, `${entry[0]} · ${title}`) : result;
  }

  const perform = Search._performSearch;
  Search._performSearch = (query, terms, excluded, marked, names) => {
    const found = new Map(); // one result for each place, under the name of the thing where it has one
    const spellings = [(word) => word, american, british];
    const results = spellings.flatMap((spell) => {
      const words = query.toLowerCase().replace(/\p{Letter}+/gu, spell);
      return perform(words, terms, excluded, marked, new Set([...names].map(spell))).reverse();
    });
    for (const result of results.map(ofChapter)) {
      const place = result[0] + result[2];
      if (!found.has(place) || (result[3] && !found.get(place)[3])) found.set(place, result);
    }
    return [...found.values()].map(named).sort((a, b) => kindOf(a) - kindOf(b) || b[4] - a[4]).reverse();
  };

  /** The sentence of a page that holds most of the searched words, from its first letter. */
  Search.makeSearchSummary = (text, keywords, anchor) => {
    const page = new DOMParser().parseFromString(text, "text/html");
    const target = anchor ? page.getElementById(decodeURIComponent(anchor.slice(1))) : null;
    const place = (target?.matches("dt") ? target.nextElementSibling : target) || page.querySelector("article");
    place.querySelectorAll(NOISE).forEach((element) => element.remove());
    const stemmer = new Stemmer();
    const searched = (word) => {
      const stem = stemmer.stemWord(word.toLowerCase());
      return [...keywords].find((keyword) => stem === keyword || (keyword.length > 2 && stem.includes(keyword)));
    };
    const sentences = [place, ...place.querySelectorAll(BLOCKS)]
      .filter((block) => !block.querySelector(BLOCKS))
      .flatMap((block) => block.textContent.replace(/\s+/g, " ").trim().split(/(?<=[.!?])\s+(?=\p{Lu})/u))
      .filter((sentence) => sentence.length > 20 && /^[\p{L}\p{N}“"'(*]/u.test(sentence));
    const score = (sentence) => new Set(splitQuery(sentence).map(searched).filter(Boolean)).size;
    let best = sentences[0] ?? "", most = 0;
    for (const sentence of sentences) if (score(sentence) > most) [best, most] = [sentence, score(sentence)];
    if (best.length > LONGEST) best = `${best.slice(0, LONGEST).replace(/\s+\S*$/, "")} …`;
    const summary = document.createElement("p");
    summary.className = "context";
    for (const piece of best.split(/([\p{Letter}\p{Number}_]+)/u)) {
      if (!searched(piece)) { summary.append(piece); continue; }
      const word = document.createElement("span");
      word.className = "highlighted";
      word.textContent = piece;
      summary.append(word);
    }
    return summary;
  };
})();
