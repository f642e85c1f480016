// The reviewer's page: show one photo at a time, send each decision to Python, and show what Python has confirmed.
const TIMEOUT = 20_000          // milliseconds to wait for a reply before the page reports it
const PAUSE = 700               // milliseconds between two questions to Python: is the model improved, is the folder free
const NONE = '_none', EXCLUDED = '_excluded'
const WORDS = { [NONE]: 'none of these', [EXCLUDED]: 'excluded' }
const DOING = { hello: 'reading the photos…', apply: 'moving the files…', revert: 'restoring the dataset…', save: 'saving…', compare: 'comparing…' }
const KEYS = [
  ['Enter', 'the most probable class, or the marked one'], ['1 2 3 …', 'the class with that number'],
  ['a letter', 'the class that begins with it; if there are several, again for the next one, then Enter'], ['/', 'search a class'],
  ['n', 'none of these'], ['x', 'exclude the photo'], ['+', 'new class'], ['u', 'undo the last decision'],
  ['← →', 'previous, next photo'], ['Escape', 'close a dialog, clear the search'], ['?', 'these keys']]

const tag = (name, props = {}, ...children) => {
  const el = Object.assign(document.createElement(name), props)
  el.append(...children)
  return el
}
const aria = (el, values) => { for (const key in values) el.setAttribute(key === 'role' ? key : `aria-${key}`, values[key]); return el }
const percent = p => `${(100 * p).toFixed(p > 0.995 || p < 0.1 ? 1 : 0)} %`
const words = label => WORDS[label] ?? label

function render({ model, el }) {
  let state = {}                // what Python confirmed last
  let waiting = null            // timer of the action that Python has not confirmed yet
  let later = null              // timer of the next question
  let marked = 0                // number of the marked class among those found
  const pictures = new Map()    // key → image, those shown now and the next ones

  const button = (text, onclick, key) => {
    const b = tag('button', { type: 'button', onclick }, text, ...(key ? [' ', aria(tag('kbd', { textContent: key }), { hidden: true })] : []))
    if (key) aria(b, { keyshortcuts: key })
    return b
  }
  const bar = aria(tag('progress', { max: 1, value: 0 }), { label: 'photos decided' })
  const status = aria(tag('span', { className: 'gear-status' }), { role: 'status' })
  const notice = aria(tag('p', { className: 'gear-notice' }), { role: 'alert' })
  const stage = aria(tag('div', { className: 'gear-stage', tabIndex: 0 }), { role: 'group', label: 'photo to decide; press ? for the keys' })
  const about = aria(tag('div', { className: 'gear-about' }), { live: 'polite' })
  const choices = aria(tag('div', { className: 'gear-choices' }), { role: 'group', label: 'most probable classes' })
  const nearest = tag('div', { className: 'gear-nearest' })
  const search = aria(tag('input', { type: 'search', placeholder: 'all classes', spellcheck: false, autocomplete: 'off' }), { label: 'search a class' })
  const hint = aria(tag('span', { className: 'gear-hint' }), { live: 'polite' })
  const classes = aria(tag('div', { className: 'gear-classes' }), { role: 'group', label: 'all classes' })
  const back = aria(button('←', () => act({ kind: 'go', step: -1 })), { label: 'previous photo', keyshortcuts: 'ArrowLeft' })
  const forth = aria(button('→', () => act({ kind: 'go', step: 1 })), { label: 'next photo', keyshortcuts: 'ArrowRight' })
  const none = button('None of these', () => decide(NONE), 'n')
  const exclude = button('Exclude', () => decide(EXCLUDED), 'x')
  const fresh = button('New class', () => addClass(), '+')
  const undo = button('Undo', () => act({ kind: 'undo' }), 'u')
  const help = button('Keys', () => showKeys(), '?')
  const recent = aria(tag('ol', { className: 'gear-recent' }), { label: 'last decisions' })
  const apply = button('Apply to dataset', () => act({ kind: 'plan' }))
  const revert = button('Revert', () => act({ kind: 'revert' }))
  const save = button('Save model', () => askSave())
  const compare = button('Compare', () => act({ kind: 'compare' }))
  const card = aria(tag('div', { className: 'gear-card' }), { live: 'polite' })
  const dialog = tag('dialog', { className: 'gear-dialog' })
  const panel = tag('div', { className: 'gear-panel' }, about, choices, tag('div', { className: 'gear-actions' }, none, exclude, fresh, undo),
    nearest, tag('div', { className: 'gear-search' }, search, hint), classes)
  const root = tag('div', { className: 'gear-uploader gear-reviewer' }, tag('div', { className: 'gear-bar' }, bar, status, back, forth, help), notice,
    tag('div', { className: 'gear-desk' }, stage, panel), recent, tag('div', { className: 'gear-bar' }, apply, revert, save, compare), card, dialog)
  root.setAttribute('data-lm-suppress-shortcuts', 'true')       // keys pressed here are not JupyterLab's shortcuts
  el.append(root)

  // ---- sending: one action at a time, the next after Python's reply
  const send = message => {
    try { model.send(message) } catch { reportSilence() }       // the connection is closed
  }
  const act = message => {
    if (waiting) return
    waiting = setTimeout(reportSilence, TIMEOUT)
    aria(root, { busy: true })
    if (DOING[message.kind]) status.textContent = DOING[message.kind]
    send(message)
  }
  const reportSilence = () => {
    tell('No reply from Python. If it is busy, it will continue when it is done. If it was restarted, run this cell again or reload the page.')
  }
  const tell = text => { if (notice.textContent !== text) notice.textContent = text }
  const ask = (message, delay = PAUSE) => {
    clearTimeout(later)
    later = setTimeout(() => root.isConnected && send(message), delay)
  }
  const decide = label => { if (state.item) act({ kind: 'decide', path: state.item.path, label }) }

  // ---- dialogs
  const open = (title, text, ok, field) => new Promise(resolve => {
    const input = field && aria(tag('input', { type: 'text', value: field.value, required: true, spellcheck: false, autocomplete: 'off' }), { label: field.label })
    const cancel = tag('button', { type: 'button', textContent: ok ? 'Cancel' : 'Close', onclick: () => dialog.close() })
    const form = tag('form', {}, tag('h3', { textContent: title }), ...[text].flat(), ...(input ? [input] : []),
      tag('div', { className: 'gear-bar' }, ...(ok ? [tag('button', { textContent: ok })] : []), cancel))
    dialog.returnValue = ''
    dialog.onclose = () => {
      if (dialog.open) return                   // the event of an earlier dialog comes late
      stage.focus()
      resolve(dialog.returnValue === 'ok' ? input ? input.value.trim() : true : null)
    }
    form.onsubmit = e => { e.preventDefault(); dialog.close('ok') }
    dialog.replaceChildren(form)
    aria(dialog, { label: title })
    if (input) input.onkeydown = e => {         // JupyterLab takes Enter from forms
      if (e.key !== 'Enter') return
      e.preventDefault()
      e.stopPropagation()
      form.requestSubmit()
    }
    dialog.showModal()
    ;(input ?? form.querySelector('button')).focus()
  })
  const paragraph = text => tag('p', { textContent: text })
  const addClass = async () => {
    if (!state.item) return
    const name = await open('New class', [], 'Add', { label: 'name of the new class', value: '' })
    if (name) decide(state.labels.find(label => label.toLowerCase() === name.toLowerCase()) ?? name)
  }
  const askApply = async () => {
    if (await open('Apply to dataset', [paragraph(state.plan), paragraph('You can take it back with Revert.')], 'Apply')) act({ kind: 'apply' })
  }
  const askSave = async () => {
    const name = await open('Save model', paragraph(`The model is saved in a new folder in ${state.models}.`), 'Save', { label: 'name of the model', value: 'better' })
    if (name) act({ kind: 'save', name })
  }
  const showKeys = () => open('Keys', tag('dl', {}, ...KEYS.flatMap(([key, what]) => [tag('dt', {}, tag('kbd', { textContent: key })), tag('dd', { textContent: what })])))

  // ---- classes
  const found = () => {         // the classes that the search matches; one letter matches the beginning
    const text = search.value.trim().toLowerCase()
    const begins = state.labels.filter(label => label.toLowerCase().startsWith(text))
    return text.length < 2 ? begins : [...begins, ...state.labels.filter(label => !begins.includes(label) && label.toLowerCase().includes(text))]
  }
  const showClasses = () => {
    const labels = found()
    marked %= Math.max(labels.length, 1)
    classes.replaceChildren(...labels.map((label, i) => {
      const b = button(label, () => decide(label))
      if (search.value && i === marked) aria(b, { current: true })
      return b
    }))
    hint.textContent = !search.value ? '' : labels.length ? `Enter: ${labels[marked]}` : 'no such class'
  }
  const find = text => { search.value = text; marked = 0; showClasses() }
  const findLetter = letter => {
    if (search.value === letter) { marked += 1; return showClasses() }
    find(letter)
    if (found().length === 1) decide(found()[0])
    else if (!found().length) search.value = ''
  }
  const enter = () => {
    if (!search.value) return state.item && decide(state.item.top[0][0])
    if (found().length) decide(found()[marked])
  }
  search.oninput = () => find(search.value)

  // ---- keys
  const actions = {
    Enter: enter, n: () => decide(NONE), x: () => decide(EXCLUDED), u: () => act({ kind: 'undo' }), '+': addClass, '?': showKeys, '/': () => search.focus(),
    ArrowLeft: () => act({ kind: 'go', step: -1 }), ArrowRight: () => act({ kind: 'go', step: 1 }), Escape: () => find('') }
  const inSearch = { Enter: enter, Escape: () => { find(''); stage.focus() }, ArrowDown: () => { marked += 1; showClasses() } }
  root.onkeydown = e => {
    if (e.ctrlKey || e.metaKey || e.altKey || e.target.closest('dialog')) return
    if (e.key === 'Enter' && e.target.closest('button')) return                 // presses that button
    const choice = /^[1-9]$/.test(e.key) && choices.children[e.key - 1]
    const key = e.key.length === 1 ? e.key.toLowerCase() : e.key
    const action = e.target === search ? inSearch[key] : actions[key] ?? (choice ? () => choice.click() : /^\p{L}$/u.test(key) ? () => findLetter(key) : null)
    if (!action) return
    e.preventDefault()
    e.stopPropagation()
    if (state.progress) action()
  }

  // ---- what Python confirmed
  const show = message => {
    clearTimeout(waiting)
    waiting = null
    aria(root, { busy: false })
    const moved = message.item?.path !== state.item?.path || message.item?.decided !== state.item?.decided
    state = message
    tell(message.error ?? message.progress?.error ?? message.progress?.warning ?? '')
    root.classList.toggle('gear-closed', !message.progress)
    status.textContent = ''
    if (!message.progress) return ask({ kind: 'hello' }, 3 * PAUSE)             // try again: another page may have the folder
    const hadFocus = !root.contains(document.activeElement) ? document.activeElement === document.body : document.activeElement.closest('.gear-panel')
    if (moved) find('')
    else showClasses()
    showItem(message.item)
    showProgress(message.progress)
    recent.replaceChildren(...message.recent.map(showDecision))
    undo.disabled = !message.recent.length
    revert.hidden = !message.applied
    card.replaceChildren(...(message.card ?? []).map(paragraph))
    showPictures()
    if (hadFocus) stage.focus({ preventScroll: true })
    const missing = message.pictures.filter(key => !pictures.has(key))
    if (missing.length) send({ kind: 'look', keys: missing })
    if (message.plan) askApply()
  }
  const showProgress = progress => {
    bar.max = Math.max(progress.n, 1)
    bar.value = progress.decided
    const improving = progress.adapting ? 'improving…' : progress.version > state.progress.version ? 'predictions updated' : ''
    state.progress = progress
    status.textContent = [progress.text, improving, state.note].filter(Boolean).join(' · ')
    if (progress.adapting) ask({ kind: 'poll' })
  }
  const showItem = item => {
    for (const b of [none, exclude, fresh, forth]) b.disabled = !item
    panel.hidden = !item
    nearest.replaceChildren()
    if (!item) return
    const old = item.label ? `labeled ${item.label}` : 'no label yet'
    about.replaceChildren(tag('strong', { textContent: item.reason }), tag('div', { textContent: `${item.name}, ${old}` }),
      ...(item.decided ? [tag('div', { className: 'gear-decided', textContent: `decided: ${words(item.decided)}` })] : []))
    choices.replaceChildren(...item.top.map(([label, p], i) => {
      const meter = tag('span', { className: 'gear-meter' }, tag('div', { style: `width:${100 * p}%` }))
      const b = button('', () => decide(label))
      b.append(aria(tag('kbd', { textContent: i + 1 }), { hidden: true }), tag('span', { textContent: label }), meter, tag('span', { textContent: percent(p) }))
      return aria(b, { keyshortcuts: i + 1, pressed: label === item.decided })
    }))
    if (!item.nearest) return
    nearest.append(tag('span', { className: 'gear-frame' }), tag('span', { textContent: `because it looks like this one: ${item.nearest}` }))
  }
  const showDecision = ({ path, label }) => {
    const li = tag('li', {}, tag('span', { className: 'gear-frame' }), tag('span', { textContent: words(label) }))
    li.dataset.key = `thumb ${path}`
    return li
  }

  // ---- pictures
  const place = (frame, key, alt) => {
    const image = pictures.get(key)
    frame.classList.toggle('gear-loading', !image && !!key)
    if (image?.src) { image.alt = alt; frame.replaceChildren(image) }
    else frame.replaceChildren(image ? 'the photo could not be read' : '')
  }
  const showPictures = () => {
    for (const key of pictures.keys()) if (!state.pictures.includes(key)) forget(key)
    if (state.item) place(stage, `photo ${state.item.path}`, `photo ${state.item.name}`)
    else stage.replaceChildren(state.progress.n ? 'All photos are decided.' : 'There are no photos in this folder.')
    const frame = nearest.querySelector('.gear-frame')
    if (frame) { frame.hidden = !state.item.nearest_key; place(frame, state.item.nearest_key, 'most similar photo') }
    for (const li of recent.children) place(li.firstChild, li.dataset.key, '')
  }
  const forget = key => { URL.revokeObjectURL(pictures.get(key).src); pictures.delete(key) }
  const keep = (key, content) => {
    if (pictures.has(key) || !state.pictures?.includes(key)) return
    const image = new Image()
    if (content.byteLength) image.src = URL.createObjectURL(new Blob([content], { type: 'image/jpeg' }))
    pictures.set(key, image)
    showPictures()
  }

  model.on('msg:custom', (message, buffers) => {
    if (message.kind === 'state') show(message)
    if (message.kind === 'progress' && state.progress) showProgress(message.progress)
    if (message.kind === 'picture') keep(message.key, buffers[0])
  })
  act({ kind: 'hello' })
  return () => { clearTimeout(waiting); clearTimeout(later); [...pictures.keys()].forEach(forget) }
}

export default { render }
