// A button on each piece of code that copies it
document.addEventListener('DOMContentLoaded', () => {
  if (!navigator.clipboard) return
  for (const block of document.querySelectorAll('.bd-article div.highlight')) {
    if (block.closest('.cell_output')) continue
    const button = document.createElement('button')
    button.type = 'button'
    button.className = 'copy'
    button.textContent = 'Copy'
    button.addEventListener('click', async () => {
      await navigator.clipboard.writeText(block.querySelector('pre').innerText.trimEnd())
      button.textContent = 'Copied'
      setTimeout(() => { button.textContent = 'Copy' }, 1500)
    })
    block.append(button)
  }
})
