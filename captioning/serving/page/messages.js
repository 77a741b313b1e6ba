// What went wrong, in plain words and with what to do about it: one sentence or two for every code of the service, and for this page's own.

const FILE_INSTEAD = "Save the image on your device and choose the file instead.";

export const SENTENCES = {
  bad_request: "The service did not understand what this page sent. Reload the page and try again.",
  unauthorized: "This service needs an API key. Enter the key, then describe the image again.",
  urls_off: `This service takes no addresses. ${FILE_INSTEAD}`,
  not_found: "There is no describing service at this address. Ask whoever gave you the address of this page.",
  method_not_allowed: "The service does not take images here. Ask whoever gave you the address of this page.",
  request_timeout: "Sending the image took too long. Check your connection and try again, or choose a smaller image.",
  head_too_large: "The service refused what this page sent: the address or the key is too long. Choose a shorter one.",
  too_large: "This image is too large for the service. Choose a smaller one.",
  too_many_images: "Only one image can be described at a time. Choose one image.",
  unsupported_media_type: "The service did not take this as an image. Choose a JPEG or PNG file.",
  invalid_parameter: "This page asked for something that the service does not offer. Reload the page and try again.",
  image_unreadable: "This file cannot be read as an image. It may be damaged, too big in pixels, or no image. Choose another, best a JPEG or PNG file.",
  url_refused: `The service may not fetch this address. ${FILE_INSTEAD}`,
  url_failed: `The service got no image from this address. Check the address, or: ${FILE_INSTEAD.toLowerCase()}`,
  url_too_large: "The image at this address is too large for the service. Choose a smaller one.",
  url_timeout: `The address took too long to answer. Try again, or: ${FILE_INSTEAD.toLowerCase()}`,
  url_not_image: "There is something else than an image at this address, perhaps a page that shows it. Copy the address of the image itself.",
  model_failed: "The model cannot describe this image. Try another one.",
  internal: "Something broke inside the service. Try again; if it happens again, tell whoever runs the service.",
  overloaded: "The service is busy just now. Your image is still here: try again in a moment.",
  not_ready: "The service is not ready just now. Your image is still here: try again in a moment.",
  deadline: "The service ran out of time. Try again in a moment.",

  // of this page
  nothing_chosen: "Choose an image first.",
  not_an_address: "This is not the address of an image. It should begin with https://",
  not_a_file: "There was no image in what you gave. Choose a file instead.",
  file_gone: "The file can no longer be read: it was moved or changed. Choose it again.",
  wrong_key: "This API key is wrong. Check it and enter it again.",
  offline: "You are offline. Connect to the internet, then try again.",
  network: "The service cannot be reached. Check your connection, then try again.",
  not_json: "Something else than the service answered. Try again in a moment; if it happens again, tell whoever runs the service.",
  unknown: "The service refused, for a reason that this page does not know.",
  no_camera: "The camera cannot be used. Allow it for this page in your browser, close other programs that use it, or choose a file.",
};

const RETRIED = ["overloaded", "not_ready", "deadline", "offline", "network", "not_json", "internal", "request_timeout", "url_timeout"];

export class Refusal extends Error {
  // wait: seconds until it is worth trying again. trace: what whoever runs the service may want to know.
  constructor(code, { wait = 0, trace = "" } = {}) {
    super(code);
    this.code = code;
    this.wait = wait;
    this.trace = trace;
  }

  get mayBeRetried() {
    return RETRIED.includes(this.code);
  }
}

export function sentence(refusal, limits) {
  const text = SENTENCES[refusal.code] ?? `${SENTENCES.unknown} Its code is ${refusal.code}.`;
  const most = ["too_large", "url_too_large"].includes(refusal.code) && limits ? ` At most ${megabytes(limits.bytes)} are taken.` : "";
  return text + most;
}

export function megabytes(bytes) {
  const number = bytes / 2 ** 20;
  return number < 0.1 ? `${Math.ceil(bytes / 1024)} KB` : `${number.toFixed(number < 10 && number % 1 ? 1 : 0)} MB`;
}
