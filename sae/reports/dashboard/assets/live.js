"use strict";
// Served pages only: what is computed while the page is open.

window.live = {
  async ask(address, question) {
    const token = document.querySelector("meta[name=token]").content;
    let answer, content;
    try {
      answer = await fetch(address, {method: "POST", headers: {"Content-Type": "application/json", "X-Token": token}, body: JSON.stringify(question)});
      content = await answer.json();
    } catch { throw new Error("The server does not answer. Is evaluate.py still running?"); }
    if (!answer.ok) throw new Error(content.error);
    return content;
  },

  // A button that asks; `receive` shows the answer, and errors stand beside the button.
  button(text, ask, receive) {
    const button = make("button", {type: "button"}, text), told = make("span", {class: "small", role: "status"});
    button.addEventListener("click", async () => {
      button.disabled = true;
      told.textContent = " computing …";
      try {
        receive(await ask());
        told.textContent = "";
      } catch (error) { told.textContent = ` ${error.message}`; }
      button.disabled = false;
    });
    return make("p", {class: "control"}, button, told);
  },
};
