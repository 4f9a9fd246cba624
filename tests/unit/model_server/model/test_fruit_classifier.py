import pytest

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("side", [6, 16, 17, 31, 150])
def test_pooled_convolution_is_the_convolution_and_its_pooling(side: int) -> None:
    from torch import nn
    from torch.nn import functional

    from model_server.model.fruit_classifier import PooledConvolution

    torch.manual_seed(0)
    conv = nn.Conv2d(3, 6, 5)
    x = torch.randn(2, 3, side, side)
    torch.testing.assert_close(PooledConvolution(conv)(x), functional.max_pool2d(conv(x), 2), rtol=1e-5, atol=1e-5)


def test_prepared_for_inference_it_takes_pixels_for_the_same_logits() -> None:
    from model_server.model.fruit_classifier import FruitClassifier

    torch.manual_seed(0)
    model = FruitClassifier(3, 64).eval()
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = torch.randint(0, 256, (1, 3, 64, 64)).float()
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    with torch.inference_mode():
        expected = model((pixels / 255 - shift) / scale)
        model.prepare_for_inference(mean, std)
        torch.testing.assert_close(model(pixels), expected, rtol=1e-4, atol=1e-4)
