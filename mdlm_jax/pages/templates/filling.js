(() => {
  const root = document.currentScript.closest(".filling");
  const all = root.querySelector(".all");
  const calm = matchMedia("(prefers-reduced-motion: reduce)");

  function player(element) {
    const numbers = (name) => element.dataset[name].split(" ").map(Number);
    const [steps, at, percent] = [Number(element.dataset.steps), numbers("at"), numbers("percent")];
    const tokens = [...element.querySelectorAll("i")];
    const [button, slider] = element.querySelectorAll("button, input");
    let step = steps, timer = null;

    function show(next) {
      const before = step;
      step = Math.max(0, Math.min(steps, next));
      tokens.forEach((token, i) => {
        if (at[i] < Math.min(before, step) - 1 || at[i] >= Math.max(before, step)) return;
        token.classList.toggle("blank", at[i] >= step);
        token.classList.toggle("now", at[i] === step - 1 && step < steps);
      });
      const text = `step ${step} of ${steps}`;
      slider.value = step;
      slider.setAttribute("aria-valuetext", text);
      element.querySelector(".count").textContent = text;
    }
    function label() {
      button.textContent = timer === null ? "Play" : "Pause";
      if (all) all.textContent = players.some((each) => each.playing()) ? "Pause all" : "Play all";
    }
    function pause() {
      clearTimeout(timer);
      timer = null;
      label();
    }
    function advance() {
      // With reduced motion: few changes, and slow.
      show(step + (calm.matches ? Math.ceil(steps / 12) : 1));
      if (step === steps) return pause();
      timer = setTimeout(advance, calm.matches ? 1000 : Math.max(40, Math.min(600, 8000 / steps)));
    }
    function play() {
      if (step === steps) show(0);
      clearTimeout(timer);
      timer = setTimeout(advance, 500);
      label();
    }
    const playing = () => timer !== null;
    const toggle = () => (playing() ? pause() : play());
    const seek = (next) => { pause(); show(next); };

    button.addEventListener("click", toggle);
    slider.addEventListener("input", () => seek(Number(slider.value)));
    slider.addEventListener("keydown", (event) => {
      if (event.key === " ") { event.preventDefault(); toggle(); }
    });
    element.addEventListener("pointerover", ({ target }) => {
      const i = tokens.indexOf(target);
      if (i >= 0) target.title = at[i] < step ? `step ${at[i] + 1}: ${percent[i]} %` : "masked";
    });
    element.querySelector(".controls").hidden = false;
    return { show, play, pause, playing, seek };
  }

  const players = [...root.querySelectorAll(".player")].map(player);
  function follow() {
    const wanted = /\bstep=(\d+)/.exec(location.hash);
    players.forEach((each) => (wanted ? each.seek(Number(wanted[1])) : each.show(Infinity)));
  }
  if (all) {
    all.hidden = false;
    all.addEventListener("click", () => {
      const some = players.some((each) => each.playing());
      players.forEach((each) => (some ? each.pause() : each.play()));
    });
  }
  addEventListener("hashchange", follow);
  follow();
})();
