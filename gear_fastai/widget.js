// The uploader's page side: choose or drop photos, send them to Python one after the other, show what it says.
const PART = 1 << 20            // bytes a message: servers refuse large ones without a word
const PATIENCE = 20_000         // milliseconds without an answer until we say so

const tag = (name, props = {}, ...children) => {
  const el = Object.assign(document.createElement(name), props)
  el.append(...children)
  return el
}
const percent = p => `${(100 * p).toFixed(p > 0.995 || p < 0.1 ? 1 : 0)} %`

function render({ model, el }) {
  const rows = new Map()        // id → {file, li, …}, in the order they came
  let queue = []                // what waits to be sent: {row}: classify it; {row, label}: save it as label; {row, label: ''}: undo that
  let busy = null, done = 0, asked = 0, gone = false

  const input = tag('input', { type: 'file', multiple: true, accept: 'image/*,.tif,.tiff,.avif,.heic,.heif', className: 'gear-file', tabIndex: -1 })
  input.setAttribute('aria-hidden', 'true')
  const drop = tag('button', { type: 'button', className: 'gear-drop' }, tag('b', { textContent: 'Choose photos' }), ' or drop them here')
  const picker = tag('select', { className: 'gear-picker' })
  const pickerLabel = tag('label', {}, 'Model ', picker)
  const save = tag('input', { type: 'text', className: 'gear-folder', spellcheck: false })
  const saveLabel = tag('label', {}, 'Corrected and confirmed photos go to ', save)
  const status = tag('span', { className: 'gear-status' })
  status.setAttribute('role', 'status')
  const bar = tag('progress', { className: 'gear-progress', max: 1, value: 0 })
  bar.setAttribute('aria-label', 'photos answered')
  const csv = tag('button', { type: 'button', textContent: 'Download CSV', disabled: true })
  const clear = tag('button', { type: 'button', textContent: 'Clear', disabled: true })
  const notice = tag('p', { className: 'gear-notice' })
  notice.setAttribute('role', 'alert')
  const list = tag('ul', { className: 'gear-list' })
  const root = tag('div', { className: 'gear-uploader' }, tag('div', { className: 'gear-options' }, pickerLabel, saveLabel), drop, input, notice,
    tag('div', { className: 'gear-bar' }, status, bar, csv, clear), list)
  root.setAttribute('data-lm-suppress-shortcuts', 'true')       // JupyterLab: our keys are not its shortcuts
  el.append(root)

  // ---- what Python keeps for us
  const showState = () => {
    picker.replaceChildren(...model.get('models').map(m => tag('option', { value: m, textContent: m })))
    picker.value = model.get('chosen')
    pickerLabel.hidden = model.get('models').length < 2
    save.value = model.get('save_to')
    saveLabel.hidden = !model.get('may_choose_folder')
    if (!gone) notice.textContent = model.get('notice')
  }
  for (const name of ['models', 'chosen', 'save_to', 'notice', 'may_choose_folder']) model.on(`change:${name}`, showState)
  model.on('change:labels', () => rows.forEach(showChoice))
  picker.onchange = () => { model.set('chosen', picker.value); model.save_changes() }
  save.onchange = () => { model.set('save_to', save.value); model.save_changes() }
  showState()

  // ---- rows
  const refresh = () => {
    bar.max = Math.max(asked, 1)
    bar.value = done
    const count = {}
    for (const r of rows.values()) for (const key of [r.end, r.corrected]) count[key] = (count[key] ?? 0) + 1
    const ends = ['labelled', 'not sure', 'not read', 'corrected', 'confirmed'].filter(e => count[e]).map(e => `${count[e]} ${e}`).join(', ')
    status.textContent = !rows.size ? '' : done < asked ? `${done} of ${asked}` : ends
    clear.disabled = !rows.size
    csv.disabled = !rows.size || done < asked
    root.classList.toggle('gear-busy', done < asked)
  }
  const addRow = (id, name, file) => {
    const img = tag('img', { alt: '', className: 'gear-thumb' }), answer = tag('div', { className: 'gear-answer', textContent: 'waiting' })
    const fix = tag('div', { className: 'gear-fix' })
    const li = tag('li', {}, img, tag('div', { className: 'gear-name', textContent: name, title: name }), answer, fix)
    const row = { id, name, file, li, img, answer, fix }
    rows.set(id, row)
    return row
  }
  const fail = (row, why) => {
    row.end = 'not read'
    row.li.classList.add('gear-failed')
    row.answer.textContent = why
  }
  const show = (row, msg, thumb) => {
    if (msg.error) return fail(row, msg.error)
    if (thumb) { row.img.src = URL.createObjectURL(new Blob([thumb], { type: 'image/jpeg' })); row.img.alt = `photo ${row.name}` }
    row.bars = msg.top.map(([label, p]) => {
      const meter = tag('div', { className: 'gear-meter' }, tag('div', { style: `width:${100 * p}%` }))
      return tag('div', { className: 'gear-class' }, tag('span', { textContent: label }), meter, tag('span', { textContent: percent(p) }))
    })
    row.select = tag('select', { onchange: () => correct(row, row.select.value) })
    row.select.setAttribute('aria-label', `correct or confirm the label of ${row.name}`)
    row.undo = tag('button', { type: 'button', className: 'gear-undo', textContent: 'Undo', onclick: () => correct(row, '') })
    row.undo.setAttribute('aria-label', `undo the correction of ${row.name}`)
    row.fixed = tag('div', { className: 'gear-saved' })
    row.fixed.setAttribute('role', 'status')
    row.fix.replaceChildren(row.select, row.undo, row.fixed)
    showLabel(row, msg)
    if (row.path) row.fixed.textContent = `saved: ${row.path}`
  }
  const showLabel = (row, msg) => {             // the final label in bold, and what the model says
    for (const key of ['label', 'predicted', 'corrected', 'path']) row[key] = msg[key]
    row.end = row.label ? 'labelled' : 'not sure'
    const sure = percent(msg.confidence), model = row.corrected ? ` ${row.corrected}, predicted: ${row.predicted ?? 'not sure'} ${sure}` : ` ${sure}`
    row.answer.replaceChildren(tag('div', {}, tag('strong', { textContent: row.label ?? 'not sure', className: 'gear-label' }), model), ...row.bars)
    showChoice(row)
  }
  const showChoice = row => {                   // the classes to choose from, and the one that was chosen
    if (!row.select) return
    const chosen = row.wanted ?? (row.corrected ? row.label : '')
    const classes = new Set([...model.get('labels'), ...(chosen ? [chosen] : [])])
    const options = [...classes].map(l => tag('option', { value: l, textContent: l === row.predicted && !row.corrected ? `${l} (confirm)` : l }))
    row.select.replaceChildren(tag('option', { value: '', textContent: 'wrong? correct it' }), ...options)
    row.select.value = chosen
    row.select.hidden = !row.file && !row.path  // after the page was opened again only Python has photos, and only those that it saved
    row.undo.hidden = !row.corrected
  }
  const correct = (row, label) => {             // the last choice counts, and goes before photos that wait
    queue = queue.filter(job => job.row !== row || job.label === undefined)
    row.wanted = label
    row.fixed.textContent = 'saving'
    queue.unshift({ row, label })
    next()
  }
  const showSaved = (row, msg) => {
    if (!queue.some(job => job.row === row && job.label !== undefined)) row.wanted = undefined
    if (msg.top) showLabel(row, msg)
    else showChoice(row)
    if (row.wanted === undefined) row.fixed.textContent = msg.error ?? (row.path ? `saved: ${row.path}` : 'correction undone')
  }

  // ---- sending, one part of one file at a time; the next when Python has it
  const send = (msg, buffers) => {
    clearTimeout(busy?.timer)
    if (busy) busy.timer = setTimeout(silence, PATIENCE)
    try { model.send(msg, undefined, buffers) } catch { silence() }     // the line to Python is closed
  }
  const silence = () => {
    gone = true
    notice.textContent = 'Python does not answer. If it is busy, it will go on when it is done; if it was restarted, run this cell again (or reload the page).'
  }
  const sendPart = async () => {
    const job = busy, { row, label } = job
    let part
    try { part = await row.file.slice(job.at, job.at + PART).arrayBuffer() } catch { finish(row, job, `${row.name}: the browser can't read it (was it moved or is it a folder?)`); return next() }
    if (busy !== job) return
    job.at += part.byteLength
    send({ kind: 'part', id: row.id, name: row.name, label, first: job.at === part.byteLength, last: job.at >= row.file.size }, [part])
  }
  const finish = (row, job, error) => {
    clearTimeout(job.timer)
    if (job.label === undefined) { done += 1; if (error) fail(row, error) } else if (error) showSaved(row, { error })
    busy = null
    refresh()
  }
  const next = () => {
    if (busy || !queue.length) return
    busy = { ...queue.shift(), at: 0 }
    if (busy.label === '' || !busy.row.file) return send({ kind: 'relabel', id: busy.row.id, label: busy.label })     // Python has the photo
    if (busy.row.file.size > model.get('max_bytes')) {
      finish(busy.row, busy, `${busy.row.name}: larger than ${Math.floor(model.get('max_bytes') / 1e6)} MB; shrink it first`)
      return next()
    }
    sendPart()
  }
  model.on('msg:custom', (msg, buffers) => {
    if (msg.kind === 'csv') return download(msg.text)
    if (msg.kind === 'known') { msg.answers.forEach((a, k) => { if (!rows.has(a.id)) { const row = addRow(a.id, a.name); list.append(row.li); asked += 1; done += 1; show(row, a, buffers[k]) } }); return refresh() }
    const row = rows.get(msg.id)
    if (!row) return
    if (msg.kind === 'answer') show(row, msg, buffers[0])
    if (msg.kind === 'saved') showSaved(row, msg)
    if (busy?.row !== row) return refresh()                             // another window's
    if (gone) { gone = false; showState() }
    if (msg.kind === 'got') return sendPart()
    if (msg.kind !== (busy.label === undefined ? 'answer' : 'saved')) return
    finish(row, busy)
    next()
  })

  const take = files => {
    const fresh = [...files].map((file, k) => addRow(crypto.randomUUID?.() ?? `${Date.now()}-${k}-${Math.random()}`, file.name, file))
    list.append(...fresh.map(r => r.li))
    asked += fresh.length
    queue.push(...fresh.map(row => ({ row })))
    refresh()
    next()
  }
  drop.onclick = () => input.click()
  input.onchange = () => { take(input.files); input.value = '' }
  root.ondragover = e => { e.preventDefault(); root.classList.add('gear-over') }
  root.ondragleave = e => { if (!root.contains(e.relatedTarget)) root.classList.remove('gear-over') }
  root.ondrop = e => { e.preventDefault(); e.stopPropagation(); root.classList.remove('gear-over'); take(e.dataTransfer.files) }

  const download = text => {
    const url = URL.createObjectURL(new Blob([text], { type: 'text/csv' }))
    const a = tag('a', { href: url, download: 'predictions.csv' })
    a.click()
    setTimeout(() => URL.revokeObjectURL(url), 1000)
  }
  csv.onclick = () => send({ kind: 'csv' })
  clear.onclick = () => {
    send({ kind: 'clear' })
    clearTimeout(busy?.timer)
    rows.forEach(r => r.img.src && URL.revokeObjectURL(r.img.src))
    rows.clear(); queue = []; list.replaceChildren(); busy = null; done = asked = 0; gone = false
    showState(); refresh(); drop.focus()
  }
  refresh()
  send({ kind: 'hello' })
  return () => { clearTimeout(busy?.timer); rows.forEach(r => r.img.src && URL.revokeObjectURL(r.img.src)) }
}

export default { render }
