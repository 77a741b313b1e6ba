// A photograph from the camera of a computer. Phones bring their own camera program: there an <input capture> is better.

export async function hasCamera() {
  if (!window.isSecureContext || !navigator.mediaDevices?.getUserMedia) return false;
  const devices = await navigator.mediaDevices.enumerateDevices().catch(() => []);
  return devices.some((device) => device.kind === "videoinput");
}

// The photograph as a file, or null where the dialog was closed. Throws where the camera cannot be used.
export async function takePhoto(dialog) {
  const [video, shutter, close] = ["video", "#shutter", "#close"].map((selector) => dialog.querySelector(selector));
  const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  try {
    video.srcObject = stream;
    await video.play();
    dialog.returnValue = "";
    shutter.onclick = () => dialog.close("taken");
    close.onclick = () => dialog.close();
    dialog.showModal();
    await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
    return dialog.returnValue === "taken" ? await still(video) : null;
  } finally {
    stream.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
  }
}

async function still(video) {
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.9));
  return new File([blob], "photo.jpg", { type: "image/jpeg" });
}
