" llama.vim with the settings of docs/editors/neovim.md; $RRTF_SHOWN gets the cursor's line as it is drawn.

set nocompatible encoding=utf-8 noswapfile viminfo=
let g:llama_config = {
    \ 'endpoint_fim':     $RRTF_ADDRESS . '/infill',
    \ 'endpoint_inst':    $RRTF_ADDRESS . '/v1/chat/completions',
    \ 'model_inst':       'qwen2.5-coder-0.5b-instruct',
    \ 't_max_predict_ms': 1000,
    \ 'ring_n_chunks':    4,
    \ 'api_key':          $RRTF_KEY,
    \ }
set runtimepath^=$RRTF_LLAMA_VIM
" Before 9.1 Vim is warned at the start, and would wait for a key.
silent runtime plugin/llama.vim

function! Show(timer)
    let l:row = screenpos(win_getid(), line('.'), 1).row
    call writefile([join(map(range(1, &columns), {_, column -> screenstring(l:row, column)}), '')], $RRTF_SHOWN)
endfunction
call timer_start(100, 'Show', {'repeat': -1})
