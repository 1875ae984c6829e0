// What is heard of a song: all its variants run, side by side on one clock, and gains choose which are heard. Switching
// is therefore a cross-fade of FADE seconds at the very same sample.
//
// Sound comes in chunks, each a script beside the page that calls `stemwise.sound` with Ogg Opus in base64
// (stemwise/report/sound.py says why). Two chunks are held at a time, and none before something is to be played.
"use strict";

window.stemwise = (() => {
  const RATE = 48000; // Hz, of Opus: nothing is resampled
  const FADE = 0.008; // seconds
  const AHEAD = 0.04; // seconds from a click to the first sample, so that no start is late

  const songs = new Map(); // by key
  let context = null;

  const onGrid = (seconds) => Math.round(seconds * RATE) / RATE;
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const wait = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

  function bytes(base64) {
    const text = atob(base64);
    const found = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) found[i] = text.charCodeAt(i);
    return found;
  }

  // Sound from one start to the next stop. Gains of its own, so that the sound before can fade while it begins.
  class Run {
    constructor(position, levels) {
      this.from = onGrid(position);
      this.begin = null; // the clock's time at which `from` is heard; null until the first chunk is there
      this.end = this.from; // the position up to which sound is handed over
      this.stopped = false;
      this.sources = [];
      this.out = context.createGain();
      this.out.connect(context.destination);
      this.levels = levels;
      this.gains = levels.map((level) => {
        const gain = context.createGain();
        gain.gain.value = level;
        gain.connect(this.out);
        return gain;
      });
    }

    position() {
      if (this.begin === null) return this.from;
      const heard = context.currentTime - (context.outputLatency || 0);
      return clamp(this.from + heard - this.begin, this.from, this.end);
    }

    // Hands over `length` seconds of each buffer, from `offset` on, to be heard at `position`.
    add(buffers, position, offset, length) {
      const soon = onGrid(context.currentTime + AHEAD);
      if (this.begin === null) {
        this.begin = soon;
        this.out.gain.setValueAtTime(0, soon);
        this.out.gain.linearRampToValueAtTime(1, soon + FADE);
      } else if (this.begin + position - this.from < context.currentTime) {
        this.begin = soon - (position - this.from); // it came late: all go on together, after a gap
      }
      const when = this.begin + position - this.from;
      buffers.forEach((buffer, variant) => {
        const source = new AudioBufferSourceNode(context, { buffer });
        source.connect(this.gains[variant]);
        source.start(when, offset, length);
        source.onended = () => this.sources.splice(this.sources.indexOf(source), 1);
        this.sources.push(source);
      });
      this.end = position + length;
    }

    mix(levels) {
      const now = context.currentTime;
      this.gains.forEach(({ gain }, variant) => {
        if (levels[variant] === this.levels[variant]) return;
        gain.cancelScheduledValues(now);
        gain.setValueAtTime(this.levels[variant], now);
        gain.linearRampToValueAtTime(levels[variant], now + FADE);
      });
      this.levels = levels;
    }

    stop() {
      this.stopped = true;
      const now = context.currentTime;
      this.out.gain.cancelScheduledValues(now);
      this.out.gain.setValueAtTime(1, now);
      this.out.gain.linearRampToValueAtTime(0, now + FADE);
      for (const source of this.sources) source.stop(now + FADE);
      setTimeout(() => this.out.disconnect(), 1000);
    }
  }

  // A song: where it is, what of it is loaded, and its run while it plays.
  class Song {
    constructor(data) {
      this.data = data;
      this.at = 0; // seconds, while nothing plays
      this.run = null;
      this.chunks = new Map(); // number -> promise of buffers
      this.waiting = new Map(); // number -> how to keep that promise
      songs.set(data.key, this);
    }

    get plays() {
      return this.run !== null;
    }

    get ended() {
      return this.position() >= this.data.seconds - 1 / RATE;
    }

    position() {
      return this.run ? this.run.position() : this.at;
    }

    mix(levels) {
      this.run?.mix(levels);
    }

    stop(at = this.position()) {
      this.run?.stop();
      this.run = null;
      this.at = at;
    }

    // Plays from where it is; `failed` is told why it cannot.
    start(levels, failed) {
      context ??= new AudioContext({ sampleRate: RATE });
      context.resume();
      if (this.at >= this.data.seconds) this.at = 0;
      const run = new Run(this.at, levels);
      this.run = run;
      const tell = (error) => run.stopped || failed(error);
      this.feed(run).catch(tell);
      // A browser without a sound device never starts its clock, and says nothing.
      const silent = new Error("the browser finds no sound output.");
      setTimeout(() => context.state !== "running" && tell(silent), 3000);
    }

    // Hands over chunk after chunk, never more than one ahead of what is heard.
    async feed(run) {
      const { chunk, chunks, guard, seconds } = this.data;
      for (let number = Math.min(Math.floor(run.from / chunk), chunks - 1); number < chunks; number++) {
        const buffers = await this.load(number);
        if (run.stopped) return;
        const begin = number * chunk;
        const from = Math.max(run.from, begin);
        run.add(buffers, from, guard + from - begin, Math.min(begin + chunk, seconds) - from);
        this.load(number + 1)?.catch(() => {}); // which is told when it is its turn
        while (run.position() < from) {
          await wait(0.2);
          if (run.stopped) return;
        }
      }
    }

    // The buffers of a chunk, one for each variant.
    load(number) {
      if (number >= this.data.chunks) return null;
      for (const old of this.chunks.keys()) if (old < number - 1 || old > number + 1) this.chunks.delete(old);
      if (!this.chunks.has(number)) {
        const loaded = this.fetched(number).then((coded) =>
          Promise.all(coded.map((sound) => context.decodeAudioData(bytes(sound).buffer))),
        );
        loaded.catch(() => this.chunks.delete(number)); // may be there at the next try
        this.chunks.set(number, loaded);
      }
      return this.chunks.get(number);
    }

    fetched(number) {
      return new Promise((kept, broken) => {
        const script = document.createElement("script");
        const gone = () => broken(new Error(`its sound is not in ${this.data.beside}. Keep that folder beside the page.`));
        script.src = `${this.data.folder}${number}.js`;
        script.onerror = gone;
        script.onload = () => {
          script.remove();
          if (this.waiting.delete(number)) gone();
        };
        this.waiting.set(number, kept);
        document.head.append(script);
      });
    }

    arrived(number, coded) {
      this.waiting.get(number)?.(coded);
      this.waiting.delete(number);
    }
  }

  return { Song, bytes, clamp, sound: (key, number, coded) => songs.get(key)?.arrived(number, coded) };
})();
