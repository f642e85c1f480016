// The uploader's page: choose or drop photos, send them to Python one at a time, show the predictions, correct them
// and improve the model with the corrections.
const PART = 1 << 20            // bytes per message; servers silently drop large ones
const TIMEOUT = 20_000          // milliseconds to wait for a reply before the page reports it
const NONE = '_none'            // label of a photo of none of the classes
const NEW = ' new'              // value of the entry "New class…", never a class

const tag = (name, props = {}, ...children) => {
  const el = Object.assign(document.createElement(name), props)
  el.append(...children)
  return el
}
const button = (textContent, onclick, className = '') => tag('button', { type: 'button', textContent, onclick, className })
const named = label => label === NONE ? 'none of these' : label
const percent = p => `${(100 * p).toFixed(p > 0.995 || p < 0.1 ? 1 : 0)}\u00a0%`

function render({ model, el }) {
  const rows = new Map()        // id → {file, li, …}, in the order of the photos
  let queue = []                // jobs to send: {row} classifies it, {row, label} saves it under a label, {row, label: ''} undoes that
  let busy = null               // the job that Python works on
  let done = 0, total = 0       // photos
  let silent = false            // whether Python has stopped replying
  const classes = new Set()     // new classes, beside those of the model

  const input = tag('input', { type: 'file', multiple: true, accept: 'image/*,.tif,.tiff,.avif,.heic,.heif', className: 'gear-file', tabIndex: -1 })
  input.setAttribute('aria-hidden', 'true')
  const drop = tag('button', { type: 'button', className: 'gear-drop' }, tag('b', { textContent: 'Choose photos' }), ' or drop them here')
  const picker = tag('select', { className: 'gear-picker' })
  const modelName = tag('b', {})
  const pickerLabel = tag('label', {}, 'Model ', picker, modelName)
  const save = tag('input', { type: 'text', className: 'gear-folder', spellcheck: false })
  const folderName = tag('b', {})
  const saveLabel = tag('label', {}, 'Corrections are saved in ', save, folderName)
  const status = tag('span', { className: 'gear-status' })
  status.setAttribute('role', 'status')
  const bar = tag('progress', { className: 'gear-progress', max: 1, value: 0 })
  bar.setAttribute('aria-label', 'photos classified')
  const filter = button('Not sure only', () => { filter.setAttribute('aria-pressed', !filtered()); refresh() }, 'gear-filter')
  const filtered = () => filter.getAttribute('aria-pressed') === 'true'
  filter.setAttribute('aria-pressed', 'false')
  const csv = button('Download CSV')
  const clear = button('Clear')
  const improve = button('Improve the model', () => model.send({ kind: 'improve' }), 'gear-improve')
  const told = tag('span', { className: 'gear-told' })
  told.setAttribute('role', 'status')
  const modelTo = tag('input', { type: 'text', className: 'gear-model-name', spellcheck: false, value: 'improved' })
  const saveModel = button('Save model', () => model.send({ kind: 'save', name: modelTo.value }))
  const saveModelLabel = tag('label', {}, 'as ', modelTo)
  const saveForm = tag('span', { className: 'gear-save-model' }, saveModel, saveModelLabel)
  modelTo.onkeydown = e => { if (e.key === 'Enter') saveModel.click() }
  const notice = tag('p', { className: 'gear-notice' })
  notice.setAttribute('role', 'alert')
  const list = tag('ul', { className: 'gear-list' })
  const root = tag('div', { className: 'gear-uploader' }, tag('div', { className: 'gear-options' }, pickerLabel, saveLabel), drop, input, notice,
    tag('div', { className: 'gear-bar' }, improve, saveForm, told), tag('div', { className: 'gear-bar' }, status, bar, filter, csv, clear), list)
  root.setAttribute('data-lm-suppress-shortcuts', 'true')       // keys pressed here are not JupyterLab's shortcuts
  el.append(root)

  // ---- values shared with Python
  const showState = () => {
    picker.replaceChildren(...model.get('models').map(m => tag('option', { value: m, textContent: m })))
    picker.value = modelName.textContent = model.get('chosen')
    picker.hidden = model.get('models').length < 2
    modelName.hidden = !picker.hidden
    save.value = model.get('save_to')
    folderName.textContent = model.get('save_to').split(/[\\/]/).slice(-2).join('/')
    save.hidden = !model.get('may_choose_folder')
    folderName.hidden = !save.hidden
    const working = model.get('working')
    const n = model.get('corrections')
    improve.textContent = working === 'improving' ? 'Improving …' : n ? `Improve the model with ${n} photo${n > 1 ? 's' : ''}` : 'Improve the model'
    improve.disabled = !!working || !model.get('can_improve') || !(n || model.get('improved'))
    saveForm.hidden = !model.get('improved')
    saveModel.textContent = working === 'saving' ? 'Saving …' : 'Save model'
    saveModel.disabled = !!working
    told.textContent = model.get('told') || (model.get('can_improve') ? '' : 'This model cannot be improved.')
    if (!model.get('told') && model.get('can_improve') && !n) told.textContent = 'Correct or confirm photos first.'
    if (!silent) notice.textContent = model.get('notice')
  }
  for (const name of ['models', 'chosen', 'save_to', 'notice', 'may_choose_folder', 'can_improve', 'corrections', 'improved', 'working', 'told']) model.on(`change:${name}`, showState)
  model.on('change:labels', () => rows.forEach(showChoice))
  picker.onchange = () => { model.set('chosen', picker.value); model.save_changes() }
  save.onchange = () => { model.set('save_to', save.value); model.save_changes() }
  showState()

  // ---- rows
  const refresh = () => {
    bar.max = Math.max(total, 1)
    bar.value = done
    const count = {}
    for (const r of rows.values()) for (const key of [r.outcome, r.corrected]) count[key] = (count[key] ?? 0) + 1
    const outcomes = ['labeled', 'not sure', 'not read', 'corrected', 'confirmed']
    const counts = outcomes.filter(o => count[o]).map(o => `${count[o]} ${o}`).join(', ')
    status.textContent = !rows.size ? '' : done < total ? `${done} of ${total}` : counts
    const rejected = [...rows.values()].filter(isRejected)
    rows.forEach(r => { r.li.hidden = filtered() && !isRejected(r) })
    filter.textContent = `Not sure only (${rejected.length})`
    filter.disabled = !filtered() && !rejected.length
    clear.disabled = !rows.size
    csv.disabled = !rows.size || done < total
    root.classList.toggle('gear-busy', done < total)
  }
  const isRejected = row => row.bars && !row.predicted        // by the model, whether corrected or not
  const addRow = (id, name, file) => {
    const img = tag('img', { alt: '', className: 'gear-thumb' })
    const result = tag('div', { className: 'gear-result', textContent: 'waiting' })
    const fix = tag('div', { className: 'gear-fix' })
    const li = tag('li', {}, img, tag('div', { className: 'gear-name', textContent: name, title: name }), result, fix)
    const row = { id, name, file, li, img, result, fix }
    rows.set(id, row)
    return row
  }
  const fail = (row, why) => {
    row.outcome = 'not read'
    row.li.classList.add('gear-failed')
    row.result.textContent = why
  }
  const show = (row, msg, thumb) => {
    if (msg.error) return fail(row, msg.error)
    if (thumb) { row.img.src = URL.createObjectURL(new Blob([thumb], { type: 'image/jpeg' })); row.img.alt = `photo ${row.name}` }
    row.right = button('Right', () => correct(row, row.best), 'gear-right')
    row.none = button('None of these', () => correct(row, NONE), 'gear-none')
    row.none.setAttribute('aria-label', `None of these: ${row.name}`)
    row.undo = button('Undo', () => { correct(row, ''); row.none.focus() }, 'gear-undo')
    row.undo.setAttribute('aria-label', `Undo the correction of ${row.name}`)
    row.select = tag('select', { onchange: () => row.select.value === NEW ? nameClass(row) : correct(row, row.select.value) })
    row.select.setAttribute('aria-label', `Correct the label of ${row.name}`)
    row.newName = tag('input', { type: 'text', placeholder: 'Name of the new class', hidden: true, spellcheck: false, className: 'gear-new' })
    row.newName.setAttribute('aria-label', `Name of the new class of ${row.name}`)
    row.newName.onkeydown = e => { if (e.key === 'Enter' && row.newName.value.trim()) correct(row, row.newName.value.trim()); if (e.key === 'Escape') stopNaming(row) }
    row.add = button('Add', () => row.newName.value.trim() ? correct(row, row.newName.value.trim()) : row.newName.focus(), 'gear-add')
    row.add.setAttribute('aria-label', `Add the new class of ${row.name}`)
    row.add.hidden = true
    row.saved = tag('div', { className: 'gear-saved' })
    row.saved.setAttribute('role', 'status')
    row.buttons = tag('div', { className: 'gear-buttons' }, row.right, row.none, row.undo)
    row.chooser = tag('div', { className: 'gear-buttons' }, row.select, row.newName, row.add)
    row.fix.replaceChildren(row.buttons, row.chooser, row.saved)
    showLabel(row, msg)
    if (row.path) row.saved.textContent = `saved: ${row.path}`
  }
  const showLabel = (row, msg) => {             // the final label in bold, and the prediction
    for (const key of ['label', 'predicted', 'corrected', 'path']) row[key] = msg[key]
    row.outcome = row.label ? 'labeled' : 'not sure'
    row.best = msg.top[0][0]
    row.bars = msg.top.map(([label, p]) => tag('div', { className: 'gear-class' }, tag('span', { textContent: label }),
      tag('div', { className: 'gear-meter' }, tag('div', { style: `width:${100 * p}%` })), tag('span', { textContent: percent(p) })))
    if (row.corrected && row.label !== NONE && !classes.has(row.label)) {
      classes.add(row.label)
      rows.forEach(showChoice)
    }
    const confidence = percent(msg.confidence)
    const prediction = row.corrected ? ` ${row.corrected}, predicted: ${row.predicted ?? 'not sure'} ${confidence}`
      : row.label ? ` ${confidence}` : `, perhaps ${msg.top[0][0]} ${confidence}`
    const nearest = msg.nearest ? [tag('div', { className: 'gear-nearest', textContent: `looks most like ${msg.nearest}` })] : []
    row.result.replaceChildren(tag('div', {}, tag('strong', { textContent: named(row.label) ?? 'not sure', className: 'gear-label' }), prediction), ...row.bars, ...nearest)
    showChoice(row)
  }
  const showChoice = row => {                   // the classes to choose from, and the chosen one
    if (!row.select) return
    const chosen = row.wanted ?? (row.corrected ? row.label : '')
    const all = new Set([...model.get('labels'), ...classes, NONE, ...(chosen ? [chosen] : [])])
    const options = [...all].map(l => tag('option', { value: l, textContent: named(l) }))
    row.select.replaceChildren(tag('option', { value: '', textContent: 'Correct the label' }), ...options, tag('option', { value: NEW, textContent: 'New class…' }))
    row.select.value = chosen
    row.right.textContent = row.predicted ? 'Right' : `It is ${row.best}`
    row.right.setAttribute('aria-label', `${row.right.textContent}: ${row.name} shows ${row.best}`)
    row.right.setAttribute('aria-pressed', chosen === row.best)
    row.none.setAttribute('aria-pressed', chosen === NONE)
    row.buttons.hidden = row.chooser.hidden = !row.file && !row.path     // a page that was opened again can only move photos that Python has saved
    row.undo.hidden = !row.corrected
  }
  const nameClass = row => {
    row.select.hidden = true
    row.newName.hidden = row.add.hidden = false
    row.newName.focus()
  }
  const stopNaming = row => {
    if (row.newName.hidden) return
    const focused = [row.newName, row.add].includes(row.newName.getRootNode().activeElement)
    row.newName.hidden = row.add.hidden = true
    row.newName.value = ''
    row.select.hidden = false
    if (focused) row.select.focus()
    showChoice(row)
  }
  const correct = (row, label) => {             // the last choice counts; it is sent before waiting photos
    queue = queue.filter(job => job.row !== row || job.label === undefined)
    row.wanted = label
    stopNaming(row)
    showChoice(row)
    row.saved.textContent = 'saving'
    queue.unshift({ row, label })
    next()
  }
  const showSaved = (row, msg) => {
    if (!queue.some(job => job.row === row && job.label !== undefined)) row.wanted = undefined
    if (msg.top) showLabel(row, msg)
    else showChoice(row)
    if (row.wanted === undefined) row.saved.textContent = msg.error ?? (row.path ? `saved: ${row.path}` : 'correction undone')
  }

  // ---- sending: one part of one file at a time, the next after Python's reply
  const send = (msg, buffers) => {
    clearTimeout(busy?.timer)
    if (busy) busy.timer = setTimeout(reportSilence, TIMEOUT)
    try { model.send(msg, undefined, buffers) } catch { reportSilence() }     // the connection is closed
  }
  const reportSilence = () => {
    silent = true
    notice.textContent = 'No reply from Python. If it is busy, it will continue when it is done. If it was restarted, run this cell again or reload the page.'
  }
  const sendPart = async () => {
    const job = busy, { row, label } = job
    let part
    try { part = await row.file.slice(job.at, job.at + PART).arrayBuffer() } catch {
      finish(row, job, `${row.name}: the browser can't read it (was it moved, or is it a folder?)`)
      return next()
    }
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
    if (busy.label === '' || !busy.row.file) return send({ kind: 'relabel', id: busy.row.id, label: busy.label })     // no need to send the photo
    if (busy.row.file.size > model.get('max_bytes')) {
      finish(busy.row, busy, `${busy.row.name}: larger than ${Math.floor(model.get('max_bytes') / 1e6)} MB; shrink it first`)
      return next()
    }
    sendPart()
  }
  const showUpdate = predictions => {           // by the improved model
    for (const p of predictions) {
      const row = rows.get(p.id)
      if (row?.bars && !p.error) showLabel(row, p)
    }
    refresh()
  }
  const showKnown = (predictions, thumbnails) => {
    predictions.forEach((p, i) => {
      if (rows.has(p.id)) return
      const row = addRow(p.id, p.name)
      list.append(row.li)
      total += 1
      done += 1
      show(row, p, thumbnails[i])
    })
    refresh()
  }
  model.on('msg:custom', (msg, buffers) => {
    if (msg.kind === 'csv') return download(msg.text)
    if (msg.kind === 'known') return showKnown(msg.predictions, buffers)
    if (msg.kind === 'update') return showUpdate(msg.predictions)
    const row = rows.get(msg.id)
    if (!row) return
    if (msg.kind === 'prediction') show(row, msg, buffers[0])
    if (msg.kind === 'saved') showSaved(row, msg)
    if (busy?.row !== row) return refresh()                             // the photo of another window
    if (silent) { silent = false; showState() }
    if (msg.kind === 'got') return sendPart()
    if (msg.kind !== (busy.label === undefined ? 'prediction' : 'saved')) return
    finish(row, busy)
    next()
  })

  const take = files => {
    const fresh = [...files].map((file, i) => addRow(crypto.randomUUID?.() ?? `${Date.now()}-${i}-${Math.random()}`, file.name, file))
    list.append(...fresh.map(r => r.li))
    total += fresh.length
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
    rows.clear(); queue = []; list.replaceChildren(); busy = null; done = total = 0; silent = false
    showState(); refresh(); drop.focus()
  }
  refresh()
  send({ kind: 'hello' })
  return () => { clearTimeout(busy?.timer); rows.forEach(r => r.img.src && URL.revokeObjectURL(r.img.src)) }
}

export default { render }
