// Writes down every sample that reaches the loudspeakers, by the clock of the audio hardware.
(() => {
  const worklet = `registerProcessor("tap", class extends AudioWorkletProcessor {
    process([input]) { this.port.postMessage([currentFrame, input[0] ?? new Float32Array(128)]); return true; }
  });`;
  const connect = AudioNode.prototype.connect;
  window.heard = [];
  window.AudioContext = class extends AudioContext {
    constructor(options) {
      super(options);
      window.clock = this;
      this.bus = this.createGain();
      this.audioWorklet.addModule(`data:text/javascript,${encodeURIComponent(worklet)}`).then(() => {
        const tap = new AudioWorkletNode(this, "tap", { channelCount: 1, channelCountMode: "explicit", numberOfOutputs: 0 });
        tap.port.onmessage = ({ data }) => window.heard.push(data);
        connect.call(this.bus, tap);
      });
    }
  };
  AudioNode.prototype.connect = function (target, ...rest) {
    if (target instanceof AudioDestinationNode) connect.call(this, this.context.bus);
    return connect.call(this, target, ...rest);
  };
  // When each block of 128 samples was heard, and all samples, 8192 to full scale, in base64.
  window.recorded = () => {
    const whole = Int16Array.from(window.heard.flatMap(([, samples]) => Array.from(samples, (v) => Math.round(8192 * v))));
    const bytes = new Uint8Array(whole.buffer);
    let text = "";
    for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
    return [window.heard.map(([frame]) => frame), btoa(text)];
  };
  // The frame that is computed by now, and the last that was written down, which a busy machine does later.
  window.now = () => Math.round(window.clock.currentTime * window.clock.sampleRate);
  window.frame = () => window.heard.at(-1)?.[0] ?? 0;
})();
