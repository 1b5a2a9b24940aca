"use strict";
// From token ids to characters. A token may end inside a character: the bytes of its neighbours complete it.

const INCOMPLETE = 8; // tokens that are read back at most to find the start of a character
const encoder = new TextEncoder();
const decoder = () => new TextDecoder("utf-8", {ignoreBOM: true});

// What people read: signs for control characters; everything else stays as it is.
const GLYPHS = new Map([["\n", "↵"], ["\t", "⇥"], ["\u007f", "␡"]]);
const visible = (text) => text.replace(/[\u0000-\u001f\u007f]/g, (sign) =>
  GLYPHS.get(sign) ?? String.fromCharCode(0x2400 + sign.charCodeAt(0)));
const isInvisible = (text) => /^[\p{Cf}\p{Mn}\p{Me}\u0080-\u009f]*$/u.test(text);

class Vocabulary {
  constructor({ids, pieces}) {
    const numbers = dashboard.unpack(ids);
    this.ids = numbers;
    this.pieces = new Map();
    for (let i = 0; i < pieces.length; i++) this.pieces.set(numbers[i], pieces[i]);
  }

  // Tokens that came later; those of the search stay as they are.
  add({ids, pieces}) { dashboard.unpack(ids).forEach((id, i) => this.pieces.set(id, pieces[i])); }

  piece(id) { return this.pieces.get(id) ?? ""; }

  // One token by itself; bytes that are no character alone become U+FFFD.
  name(id) {
    const piece = this.piece(id);
    return visible(typeof piece === "string" ? piece : decoder().decode(Uint8Array.from(piece)));
  }

  // Ids of the tokens that hold a text, which is in lower case.
  holding(text) {
    this.lower ??= Array.from(this.ids, (id) => this.name(id).toLowerCase());
    return new Set(this.ids.filter((_, i) => this.lower[i].includes(text)));
  }

  // The token as data: what it is in quotes, or its bytes.
  exact(id) {
    const piece = this.piece(id);
    return typeof piece === "string" ? JSON.stringify(piece)
      : piece.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
  }

  // Text of each token from `start` to `end`; a character stands at the token that completes it.
  texts(ids, start, end) {
    const texts = new Array(end - start).fill("");
    const bytes = (i) => typeof this.piece(ids[i]) !== "string";
    let first = start;
    while (first > 0 && start - first < INCOMPLETE && bytes(first) && bytes(first - 1)) first--;
    let stream = decoder(), open = -1; // `open`: the last token of an incomplete character
    const put = (i, text) => { if (i >= start) texts[i - start] += visible(text); };
    for (let i = first; i < end; i++) {
      const piece = this.piece(ids[i]);
      if (typeof piece === "string") {
        if (open >= 0) put(open, stream.decode()); // it was never completed
        open = -1;
        put(i, piece);
      } else {
        put(i, stream.decode(Uint8Array.from(piece), {stream: true}));
        open = i;
      }
    }
    // a character that the window cuts is incomplete only if the next token does not go on with it
    if (open >= 0 && !(end < ids.length && bytes(end))) put(open, stream.decode());
    return texts;
  }
}
